"""The model file: one ``.safetensors`` with the tensors, and everything needed to build the network again in its header.

The header's metadata holds one key, ``chansurg``: a JSON text of the :class:`~chansurg.surgery.journal.Record`, of tied tensors and of
memory formats. Writing goes to a temporary file beside the target, which takes the target's name only when it is whole. Loading builds
the base architecture, replays the recorded edits on it without numbers, and hands it the file's tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from chansurg.surgery.applying import ChangedUnderneath, perform
from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import ChansurgError, InputError
from chansurg.surgery.header_record import KEY, record_in_header
from chansurg.surgery.journal import Record
from chansurg.surgery.provenance import attach, record_of
from chansurg.surgery.reading.checkpoint import Checkpoint
from chansurg.surgery.reading.weights import build_with_tensors
from chansurg.surgery.writing import write_whole


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a network and its record to one safetensors file.

    The same network gives the same bytes. Dtypes are kept, tied tensors are stored once, ``channels_last`` is noted.

    Args:
        model: a network from :func:`load` or :func:`convert`, or any module.
        path: the target; an existing file is replaced only once the new one is whole.

    Raises:
        InputError: where the target's folder does not exist or cannot be written to.
        Refusal: where the disk is full or fails.
    """
    target = Path(path)
    record = record_of(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    tied = _ties(state)
    channels_last = sorted(name for name, tensor in state.items() if name not in tied and _is_channels_last(tensor))
    header = {**record.as_json(), "tied": tied, "channels_last": channels_last}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items() if name not in tied}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    write_whole(target, lambda temporary: save_file(tensors, temporary, metadata={KEY: text}))


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


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


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
    tensors = dict(checkpoint.tensors)
    for name in layout.channels_last:
        if name in tensors and tensors[name].ndim == 4:
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    for name, stored in layout.tied.items():
        if stored in tensors:
            tensors[name] = tensors[stored]
    model = build_with_tensors(base, tensors, prepare=lambda skeleton: replay(skeleton, record, checkpoint.path))
    return attach(model, replace(record, architecture=base, file=checkpoint.path.name, sha256=checkpoint.sha256))


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
        except InputError:
            raise
        except (ChansurgError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"The journal does not fit the network: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                where=f"{path}, journal entry {entry.recipe}",
                not_done="It was not loaded.",
                to_do="The file may be damaged; convert the original again.",
            ) from error
    return skeleton


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
