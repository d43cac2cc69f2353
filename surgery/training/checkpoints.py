"""The state of a run on disk: tensors in safetensors, everything else in JSON, nothing pickled.

A checkpoint is a folder. It is filled under another name, flushed to the disk, and takes its place by renaming; the one before it is
removed last. Whenever a run is killed, one whole checkpoint is there, or the run has not come to its first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from chansurg.surgery.errors import InputError, Refusal

_TENSORS, _FACTS = "state.safetensors", "state.json"
_GROUP = "group"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    Args:
        tensors: by name.
        facts: JSON values.
    """

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``name`` and a dot, without it."""
        return {key.removeprefix(f"{name}."): tensor for key, tensor in self.tensors.items() if key.startswith(f"{name}.")}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Put the checkpoint into ``folder``, in place of the one there.

    Raises:
        Refusal: where the disk is full or fails; the checkpoint that was there is untouched.
    """

    def fill(part: Path) -> None:
        # Tensors that share memory are no matter for a checkpoint, and the file format refuses them.
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()}, part / _TENSORS)
        (part / _FACTS).write_text(json.dumps(checkpoint.facts, allow_nan=False))

    replace_folder(folder, fill)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder``; ``None`` where there is none.

    Raises:
        InputError: where it was damaged since it was written.
    """
    if not recovered(folder):
        return None
    try:
        facts = json.loads((folder / _FACTS).read_text())
        return Checkpoint(load_file(folder / _TENSORS), facts)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"The checkpoint cannot be read: {str(error).splitlines()[0]}",
            where=str(folder),
            not_done="Nothing was trained.",
            to_do="Pass --restart to begin the run anew.",
        ) from error


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write the files of a new folder, flush them, and put it in the place of ``folder``.

    Raises:
        Refusal: where the disk is full or fails; what was in ``folder`` is untouched.
    """
    part, old = _part(folder), _old(folder)
    try:
        recovered(folder)
        part.mkdir(parents=True)
        fill(part)
        for file in sorted(part.iterdir()):
            _flush(file)
        _flush(part)
        if folder.exists():
            folder.replace(old)
        part.replace(folder)
        _flush(folder.parent)
        _remove(old)
    except (OSError, SafetensorError, Refusal) as error:
        if folder.exists() or old.exists():
            recovered(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise disk_failed(folder, error) from error


def recovered(folder: Path) -> bool:
    """Whether there is a whole folder of that name, once what a killed process left half done is put right."""
    part, old = _part(folder), _old(folder)
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (part, old):
        _remove(leftover)
    return folder.exists()


def remove_checkpoint(folder: Path) -> None:
    """Remove the folder and whatever a killed process left of it; killed itself, it leaves no part of a checkpoint under its name."""
    if recovered(folder):
        folder.replace(_part(folder))
        _remove(_part(folder))


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state as tensors by name and as JSON values."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            else:
                facts[f"{index}.{key}"] = value
    for number, group in enumerate(state["param_groups"]):
        tensors |= {f"{_GROUP}{number}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    groups = [{key: value for key, value in group.items() if _is_json(value)} for group in state["param_groups"]]
    return tensors, {"values": facts, "groups": groups}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Inverse of :func:`optimizer_state`; tensors of their parameter's shape take its memory format too, so arithmetic stays the same."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    groups = [{**now, **then} for now, then in zip(optimizer.state_dict()["param_groups"], facts["groups"], strict=True)]
    for name, value in (*tensors.items(), *facts["values"].items()):
        index, _, key = name.partition(".")
        if index.startswith(_GROUP):
            groups[int(index.removeprefix(_GROUP))][key] = value.clone()
            continue
        if isinstance(value, Tensor):
            parameter = parameters[int(index)]
            alike = value.shape == parameter.shape
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value) if alike else value.clone()
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def _part(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.part")


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _flush(path: Path) -> None:
    """See that a file, or a folder's list of files, is on the disk; some systems cannot open a folder for that."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_failed(folder: Path, error: Exception) -> Refusal:
    """The error for a disk that would not take what a run has to keep."""
    full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in str(error)
    full = full or "disk is full" in str(error)
    return Refusal(
        "The disk is full." if full else f"What the run has reached could not be written: {error}",
        where=str(folder),
        not_done="The run stopped at its last step; the checkpoint before it is whole.",
        to_do="Free some space, and give the same command again: it goes on from there." if full else "Check the disk, and go on there.",
    )


def tensors_below(name: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors under names that begin with ``name`` and a dot: :meth:`Checkpoint.part` gives them back."""
    return ((f"{name}.{key}", tensor) for key, tensor in tensors.items())
