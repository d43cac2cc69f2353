"""The model file: one ``.safetensors`` with the tensors, and everything needed to build the network again in its header.

The header's metadata holds one key, ``chansurg``: a JSON text of the :class:`~chansurg.surgery.journal.Record`, of tied tensors and of
memory formats. Writing goes to a temporary file beside the target, which takes the target's name only when it is whole. Loading builds
the base architecture, replays the recorded edits on it without numbers, and hands it the file's tensors.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.editing.applying import ChangedUnderneath, perform
from chansurg.surgery.editing.building import build_layer
from chansurg.surgery.editing.narrowing import narrow
from chansurg.surgery.edits import Bypass, Narrow, Repeat, Replace, new_layers
from chansurg.surgery.errors import ChansurgError, InputError, Refusal
from chansurg.surgery.files.header_record import KEY, record_in_header
from chansurg.surgery.files.likeness import differences
from chansurg.surgery.files.provenance import attach, record_of, unwrapped
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.files.writing import check_target, write_whole
from chansurg.surgery.journal import Record
from chansurg.surgery.memory_format import is_channels_last, to_channels_last
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.checkpoint import Checkpoint
from chansurg.surgery.reading.heads import with_classes
from chansurg.surgery.reading.weights import build_with_tensors

_ALIGNMENT = 64
_DAMAGED = "The file may be damaged: take another copy, or convert the original again."


def save(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a network and its record to one safetensors file.

    The same network gives the same bytes. Dtypes are kept, tied tensors are stored once, ``channels_last`` is noted. Of a network
    wrapped in DataParallel and the like, the network inside is written. A last layer for another number of classes is noted; a network
    that was changed in any other way since it was loaded or converted is refused: its file would give back another network or none.

    Args:
        model: a network from :func:`load` or :func:`convert`, or any module.
        path: the target; an existing file is replaced only once the new one is whole.
        overwrite: replace an existing file, whatever it holds. Without it, only one that holds the very same bytes already.

    Raises:
        InputError: where the target's folder does not exist or cannot be written to, or an existing file would be lost.
        Refusal: where the network is no longer what its record says, or holds more than tensors; where the disk is full or fails.
    """
    target = Path(path)
    check_target(target)
    network = unwrapped(model)
    record = _true_record(network, target)
    state = _tensors(network, target)
    tied = _ties(state)
    tensors = {name: tensor for name, tensor in state.items() if name not in tied}
    channels_last = sorted(name for name in tensors if is_channels_last(tensors[name]))
    header = {**record.as_json(), "weights": weights_digest(network), "tied": tied, "channels_last": channels_last}
    tensors = _apart({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    write_whole(target, lambda temporary: save_file(tensors, temporary, metadata={KEY: text}), overwrite=overwrite)


def _true_record(network: nn.Module, target: Path) -> Record:
    """The record, if loading by it gives this network; with the right number of classes where only that was changed.

    A network of the caller's own is theirs to build again, so of that only the recipes' layers are compared.

    Raises:
        Refusal: where it would give another network.
    """
    record = record_of(network)
    base = record.architecture
    if base is None or base.source == "factory":
        told = _changed_layers(network, record)
        if told:
            raise _changed(told, target)
        return record
    told = differences(network, replay(build(base), record, target))
    if not told:
        return record
    for classes in sorted({tensor.shape[0] for tensor in network.state_dict(keep_vars=True).values() if 1 <= tensor.ndim <= 4}):
        if not any(f" is [{classes}]" in line or f" is [{classes}, " in line for line in told):
            continue
        changed = replace(record, architecture=with_classes(base, classes), class_names=None)
        try:
            if not differences(network, replay(build(with_classes(base, classes)), record, target)):
                return changed
        except InputError:
            continue
    raise _changed(told, target)


def _changed_layers(network: nn.Module, record: Record) -> list[str]:
    """Which layers that recipes put in are not what the journal says any more."""
    found = dict(network.named_modules())
    twins: dict[str, nn.Module] = {}
    for edit in (edit for entry in record.journal for edit in sorted(entry.edits, key=lambda edit: not isinstance(edit, Repeat))):
        if isinstance(edit, Repeat):
            inside = {path: twin for path, twin in twins.items() if f"{path}.".startswith(f"{edit.path}.")}
            twins |= {edit.copy + path.removeprefix(edit.path): copy.deepcopy(twin) for path, twin in inside.items()}
        for path, layer in new_layers(edit):
            twins[path] = build_layer(layer, path, None, (torch.device("meta"), torch.float32))
        if isinstance(edit, Narrow) and edit.path in twins:
            narrow(twins[edit.path], edit.path, edit.in_channels, edit.out_channels)
        if isinstance(edit, Bypass | Replace) and edit.at.path not in found:
            twins.pop(edit.at.path, None)
    told = []
    for path, twin in twins.items():
        told += [f"{path}: {line}" for line in (differences(found[path], twin) if path in found else ["it is gone"])]
    return told


def _changed(told: list[str], target: Path) -> Refusal:
    more = f" (and {len(told) - 4} more)" if len(told) > 4 else ""
    return Refusal(
        f"The network was changed since it was loaded or converted, and its file would not give it back: {'; '.join(told[:4])}{more}.",
        where=str(target),
        not_done="Nothing was written.",
        to_do="Undo the change; or keep the weights with torch.save(model.state_dict(), …), build the changed network in a function "
        "of your own, load them with arch='package.module:factory', and convert that.",
    )


def _tensors(network: nn.Module, target: Path) -> dict[str, Tensor]:
    """The state dict, detached.

    Raises:
        Refusal: where it holds something else than tensors with numbers.
    """
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided:
            kind = "on the meta device, without numbers" if isinstance(value, Tensor) and value.is_meta else f"a {type(value).__name__}"
            raise Refusal(
                f"{name} is {kind}, and a model file holds dense tensors.",
                where=str(target),
                not_done="Nothing was written.",
                to_do="Save a network whose state dict holds nothing but dense tensors.",
            )
        state[name] = value.detach()
    return state


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensor is stored under another name already: name -> the name it is stored under."""
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
    return tied


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with those that overlap in memory copied, since the file format knows no overlap."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.numel() and tensor.data_ptr() < end:
            tensors[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return tensors


def load_converted(checkpoint: Checkpoint, architecture: Architecture | None) -> nn.Module:
    """Build the network of a model file that this project wrote.

    Args:
        checkpoint: as read; its metadata carries the record.
        architecture: what the user named with ``--arch``; needed for a network of their own, since no file names code to import.

    Raises:
        InputError: where the record is damaged or from a newer version, where a recipe is missing, where a library changed the network
            underneath, or where the user's own factory has to be named.
    """
    record, layout = record_in_header(checkpoint.metadata, checkpoint.path)
    base = record.architecture
    if base is None or base.source == "factory":
        base = _named_by_user(record, architecture, checkpoint.path)
    elif architecture is not None and (architecture.source, architecture.name) != (base.source, base.name):
        raise InputError(
            f"The file says it is {base}, not {architecture}.",
            where=str(checkpoint.path),
            not_done="It was not loaded.",
            to_do=f"Leave --arch out, or pass --arch {base}.",
        )
    tensors = {name: _aligned(tensor) for name, tensor in checkpoint.tensors.items()}
    for name in layout.channels_last:
        if name in tensors:
            tensors[name] = to_channels_last(tensors[name])
    for name, stored in layout.tied.items():
        if stored in tensors:
            tensors[name] = tensors[stored]
    try:
        model = build_with_tensors(base, tensors, prepare=lambda skeleton: replay(skeleton, record, checkpoint.path))
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{base} could not be built with the arguments in the file's record: {_first_line(error)}",
            where=str(checkpoint.path),
            not_done="It was not loaded.",
            to_do=_DAMAGED,
        ) from error
    name, weights = checkpoint.path.name, weights_digest(model)
    return attach(model, replace(record, architecture=base, file=name, sha256=checkpoint.sha256, weights=weights))


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor where its memory begins as an allocator's does: elsewhere, kernels that read whole vectors round in another way."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def replay(skeleton: nn.Module, record: Record, path: Path) -> nn.Module:
    """Repeat the journal's edits, in place, on the base architecture.

    Raises:
        InputError: where they do not fit it any more.
    """
    for entry in record.journal:
        try:
            perform(skeleton, entry.edits, entry.signatures, seed=None, expected=entry.graphs)
        except ChangedUnderneath as changed:
            written = ", ".join(f"{name} {version}" for name, version in sorted(entry.libraries.items()))
            raise InputError(
                f"The code of {changed.args[0] or 'the network'} is not what it was when this file was written (with {written}).",
                where=f"{path}, journal entry {entry.recipe}",
                not_done="It was not loaded: its edits could land in the wrong place.",
                to_do=f"Install {written}, or convert the original again.",
            ) from None
        except (ChansurgError, ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            known = isinstance(error, InputError)
            raise InputError(
                f"The journal {'cannot be repeated' if known else 'does not fit the network'}: {_first_line(error)}",
                where=f"{path}, journal entry {entry.recipe}",
                not_done="It was not loaded.",
                to_do=error.to_do if isinstance(error, InputError) else _DAMAGED,
            ) from error
    return skeleton


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _named_by_user(record: Record, architecture: Architecture | None, path: Path) -> Architecture:
    if architecture is None:
        name = str(record.architecture) if record.architecture is not None else "package.module:factory"
        raise InputError(
            "The file holds a network of somebody's own, and no file names code to import.",
            where=str(path),
            not_done="It was not loaded.",
            to_do=f"Name the function that builds it: --arch {name}",
        )
    if record.architecture is None:
        return architecture
    return replace(architecture, kwargs=record.architecture.kwargs)
