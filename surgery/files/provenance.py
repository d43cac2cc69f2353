"""Where a network comes from: its record, which travels with the module as the plain attribute ``chansurg_record``."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from chansurg.surgery.architecture import Architecture, Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.likeness import differences
from chansurg.surgery.forwards.rewriting import original_class
from chansurg.surgery.journal import Record
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.preprocessing import preprocessing_of
from chansurg.surgery.reading.recognition import recognise

ATTRIBUTE = "chansurg_record"

# What training puts around a network: child that holds it -> names of the wrappers' classes.
_WRAPPERS = {
    "module": ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "AveragedModel"),
    "_orig_mod": ("OptimizedModule",),
}


def attach(model: nn.Module, record: Record) -> nn.Module:
    """Give a network its record; returns the network."""
    object.__setattr__(model, ATTRIBUTE, record)
    return model


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, an average of weights or ``torch.compile``; any other module itself."""
    for child, wrappers in _WRAPPERS.items():
        if type(model).__name__ in wrappers and isinstance(model._modules.get(child), nn.Module):
            return unwrapped(getattr(model, child))
    return model


def refuse_wrapped(model: nn.Module) -> None:
    """See that a network to be changed is not wrapped.

    Raises:
        InputError: where it is; the wrapper would go on using the old parameters.
    """
    if unwrapped(model) is not model:
        raise InputError(
            f"The network is wrapped in {type(model).__name__}, which would go on using the old parameters.",
            where=type(model).__name__,
            not_done="Nothing was converted.",
            to_do="Convert the network inside, then wrap the result, and give the optimizer its parameters.",
        )


def record_of(model: nn.Module) -> Record:
    """The network's record; a wrapped network's is that of the network inside.

    A module of the caller's own has none yet. If it is exactly what a known library builds, it is told with that architecture; else
    without, and its file will load only with the factory that builds it. The module itself is not changed.
    """
    model = unwrapped(model)
    record = getattr(model, ATTRIBUTE, None)
    if isinstance(record, Record):
        return record
    architecture = _library_architecture(model)
    return Record(architecture, preprocessing_of(architecture) if architecture else Preprocessing())


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
    # Networks of timm say what they were built as; many share all names and shapes with others.
    stated = getattr(model, "pretrained_cfg", None) if home == "timm" else None
    name = stated.get("architecture") if isinstance(stated, dict) else None
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in model.state_dict(keep_vars=True).items())
    found = _recognised(shapes, name if isinstance(name, str) else None)
    if found is None or found.source not in (home, "cifar"):
        return None
    try:
        if getattr(model, "transform_input", False):
            found = replace(found, kwargs={**found.kwargs, "transform_input": True})
        twin = build(found)
    except InputError:
        return None
    return None if differences(model, twin) else found


@lru_cache(maxsize=64)
def _recognised(shapes: tuple[tuple[str, tuple[int, ...]], ...], timm_name: str | None) -> Architecture | None:
    try:
        return recognise(dict(shapes), architecture=None if timm_name is None else Architecture("timm", timm_name)).architecture
    except InputError:
        return None


def library_versions(network: nn.Module) -> dict[str, str]:
    """Versions of the libraries that define the network's modules; what else happens to be imported does not matter."""
    homes = {original_class(module).__module__.partition(".")[0] for module in network.modules()}
    found: dict[str, str] = {}
    for name in ("torch", "torchvision", "timm"):
        if name in homes or name == "torch":
            try:
                found[name] = version(name).partition("+")[0]
            except PackageNotFoundError:
                continue
    return found
