"""Where a network comes from: its record, which travels with the module as the plain attribute ``chansurg_record``."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.journal import Record
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.preprocessing import preprocessing_of
from chansurg.surgery.reading.recognition import recognise

ATTRIBUTE = "chansurg_record"


def attach(model: nn.Module, record: Record) -> nn.Module:
    """Give a network its record; returns the network."""
    object.__setattr__(model, ATTRIBUTE, record)
    return model


def record_of(model: nn.Module) -> Record:
    """The network's record.

    A module of the caller's own has none yet. It gets one: if it is exactly what a known library builds, with that architecture; else
    without, and its file will load only with the factory that builds it.
    """
    record = getattr(model, ATTRIBUTE, None)
    if isinstance(record, Record):
        return record
    architecture = _library_architecture(model)
    found = Record(architecture, preprocessing_of(architecture) if architecture else Preprocessing())
    attach(model, found)
    return found


def with_input_size(record: Record, input_size: tuple[int, ...] | None) -> Record:
    """The record with another input size: ``(H,)``, ``(H, W)`` or ``(C, H, W)``.

    Raises:
        InputError: for any other form.
    """
    if input_size is None:
        return record
    old = record.preprocessing
    sizes = tuple(int(size) for size in input_size)
    if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
        raise InputError(
            f"{','.join(map(str, sizes))} is not an input size.",
            where="--input-size",
            not_done="Nothing was done.",
            to_do="Pass H, or H,W, or C,H,W in pixels.",
        )
    channels = sizes[0] if len(sizes) == 3 else old.input_size[0]
    height, width = (sizes[0], sizes[0]) if len(sizes) == 1 else sizes[-2:]
    mean, std = old.mean, old.std
    if len(mean) != channels:
        mean, std = (0.5,) * channels, (0.5,) * channels
    resize = old.resize if (channels, height, width) == old.input_size else None
    return replace(record, preprocessing=replace(old, input_size=(channels, height, width), mean=mean, std=std, resize=resize))


def _library_architecture(model: nn.Module) -> Architecture | None:
    """The library's name for a module, if building it by that name gives the very same modules."""
    home = type(model).__module__.partition(".")[0]
    if home not in ("torchvision", "timm", "chansurg"):
        return None
    try:
        found = recognise({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}).architecture
        if found.source not in (home, "cifar"):
            return None
        twin = build(found)
    except InputError:
        return None
    return found if _outline(twin) == _outline(model) else None


def _outline(model: nn.Module) -> list[tuple[str, str, str]]:
    return [(path, type(module).__qualname__, module.extra_repr()) for path, module in model.named_modules()]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that define networks, for those in use."""
    found: dict[str, str] = {}
    for name in ("torch", "torchvision", "timm"):
        if name in sys.modules:
            try:
                found[name] = version(name).partition("+")[0]
            except PackageNotFoundError:
                continue
    return found
