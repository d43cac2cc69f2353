"""A checkpoint file becomes a mapping of names to tensors, and nothing in the file is ever executed.

Pickles are read with ``weights_only=True``; only the caller's explicit word (``trust_pickle``) lifts that. Files of any kind are
mapped into memory where their format allows it, so that reading costs no second copy.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.header import existing_file, file_sha256, read_header, unusable
from chansurg.surgery.reading.pickles import Container, container_of, globals_named

# Where trainers keep a network's weights, best first.
_MAIN_ENTRIES = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net_state_dict", "net", "network", "weights"),
    *("params", "parameters", "generator", "student", "checkpoint"),
)
_EMA_ENTRIES = (
    *("model_ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "params_ema", "ema"),
    *("teacher", "shadow_params"),
)
_NEVER_WEIGHTS = ("optim", "sched", "scaler", "amp", "rng", "hyper_parameters", "callbacks", "loops", "args")
# Some frameworks nest three deep.
_DEEPEST_NESTING = 6
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Checkpoint:
    """What a file held.

    Args:
        path: the file.
        tensors: name -> tensor, dtypes as in the file; tied tensors share their storage. On the CPU, and backed by the file where
            its format allows it: replacing the file is safe while they are in use, cutting it short is not.
        metadata: of a safetensors header; empty for the other kinds.
        sha256: of the file's bytes, hexadecimal.
        beside: what else lay in the file ("optimizer", "epoch", an EMA copy of the weights).
        entry: where in the file the weights lay ("state_dict"); empty for a bare state dict.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    beside: tuple[str, ...] = ()
    entry: str = ""


def read_checkpoint(path: str | PathLike[str], *, trust_pickle: bool = False) -> Checkpoint:
    """Read ``.pth .pt .th .ckpt .bin .safetensors``, told apart by content: a bare state dict, or one nested in a training checkpoint.

    Where a file has both weights and an averaged (EMA) copy of them, the weights are taken and the copy is listed in ``beside``.

    Args:
        path: the file.
        trust_pickle: let the file's pickle import and call whatever it names. Only for files that you made yourself.

    Raises:
        InputError: missing, empty, damaged or foreign files; pickles that name more than tensors (which ones is said, and that
            nothing was executed); TorchScript; no tensors; tensors with NaN or infinite values.
    """
    file = existing_file(path)
    with ThreadPoolExecutor(1) as pool:
        # Hashing leaves the interpreter free, so it runs beside the reading.
        digest = pool.submit(file_sha256, file)
        try:
            container = container_of(file)
            if container == "safetensors":
                tensors, metadata = _read_safetensors(file)
                entry = ""
                beside: tuple[str, ...] = ()
            else:
                metadata = {}
                tensors, entry, beside = _weights_in(_unpickle(file, container, trust_pickle=trust_pickle))
            if not tensors:
                raise unusable(file, "There are no tensors in this file.", "give a file that contains a network's state dict")
            _check_numbers(tensors, file)
        except InputError:
            raise
        except MemoryError as error:
            raise unusable(file, "The file asks for more memory than there is.", _AGAIN) from error
        except Exception as error:  # damage comes to light as nearly any exception
            raise unusable(file, f"The file is damaged: {_one_line(error)}", _AGAIN) from error
        return Checkpoint(file, tensors, metadata, digest.result(), beside, entry)


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    metadata = read_header(file)
    with safe_open(file, framework="pt") as opened:
        tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    # safetensors.torch.save_model stores tied weights once, and the other names in the metadata.
    for name, kept in metadata.items():
        if name not in tensors and kept in tensors:
            tensors[name] = tensors[kept]
    return tensors, metadata


def _unpickle(file: Path, container: Container, *, trust_pickle: bool) -> Any:
    # torch.load maps files by name only, and goes by the name: a pickle called .safetensors is handed to it opened.
    mapped = container == "zip" and file.suffix != ".safetensors"
    # Arguments and numpy's numbers lie beside the weights in many checkpoints; these types only hold values.
    with warnings.catch_warnings(), torch.serialization.safe_globals(_plain_types()):
        warnings.simplefilter("ignore")
        try:
            with nullcontext(file) if mapped else file.open("rb") as source:
                return torch.load(source, map_location="cpu", weights_only=not trust_pickle, mmap=mapped)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(file, container, error, trust_pickle=trust_pickle) from error


def _plain_types() -> list[Any]:
    import numpy as np

    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    scalar = np.float64(0).__reduce__()[0]
    # NumPy 2 moved this function; files name the place it had when they were written.
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, np.dtype, *scalars, *kinds]


def _unreadable(file: Path, container: Container, error: Exception, *, trust_pickle: bool) -> InputError:
    if trust_pickle:
        return unusable(
            file,
            f"The pickle could not be loaded: {_one_line(error)}",
            "make the classes that it names importable (PYTHONPATH), or save only the state dict",
        )
    named = globals_named(file, container)
    if not named:
        return unusable(file, f"The file is damaged, or no checkpoint: {_one_line(error)}", _AGAIN)
    return InputError(
        f"The file holds more than tensors: its pickle names {', '.join(named[:8])}"
        + (f" and {len(named) - 8} more." if len(named) > 8 else "."),
        where=str(file),
        not_done="nothing of it was executed or imported, no tensor was loaded, nothing was written",
        to_do="save only the state dict: torch.save(model.state_dict(), …); or, only if you made this file yourself, "
        "pass --trust-pickle (trust_pickle=True), which runs what the file says",
    )


def _weights_in(content: Any, seen: frozenset[int] = frozenset()) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """Tensors, where they lay, and what lay beside them; ``seen`` is what it lies in."""
    if id(content) in seen or len(seen) > _DEEPEST_NESTING:
        return {}, "", ()
    seen |= {id(content)}
    if isinstance(content, nn.Module):
        return dict(content.state_dict()), "", ()
    if isinstance(content, list | tuple):
        content = {str(index): item for index, item in enumerate(content)}
    if not isinstance(content, Mapping):
        return {}, "", ()
    entries = {str(key): value for key, value in content.items()}
    for name in (*_MAIN_ENTRIES, *_EMA_ENTRIES):
        inner = entries.get(name)
        if isinstance(inner, Mapping | nn.Module):
            tensors, deeper, beside_inner = _weights_in(inner, seen)
            if tensors:
                beside = (*_beside(entries, name), *beside_inner)
                return tensors, f"{name}.{deeper}" if deeper else name, beside
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors, "", tuple(key for key in entries if key not in tensors)
    parts = {
        key: found
        for key, value in entries.items()
        if isinstance(value, Mapping | nn.Module) and not key.lower().startswith(_NEVER_WEIGHTS)
        if (found := _weights_in(value, seen)[0])
    }
    if len(parts) == 1:
        ((name, tensors),) = parts.items()
        return tensors, name, _beside(entries, name)
    # Several networks, or one network's parts: names that say which is which.
    flat = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.items()}
    return flat, "", tuple(key for key in entries if key not in parts)


def _beside(entries: Mapping[str, Any], taken: str) -> tuple[str, ...]:
    return tuple(key for key in entries if key != taken)


def _check_numbers(tensors: Mapping[str, Tensor], file: Path) -> None:
    limit = file.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "no data" if tensor.is_meta else "sparse or quantised numbers"
            raise unusable(file, f"The tensor '{name}' holds {kind}, which surgery cannot work on.", "save dense tensors")
        if tensor.untyped_storage().nbytes() > limit or tensor.numel() > limit:
            raise unusable(file, f"The file is damaged: '{name}' claims more numbers than the file has.", _AGAIN)
        if not _is_finite(tensor):
            raise unusable(
                file,
                f"The tensor '{name}' contains NaN or infinite values.",
                "use a checkpoint from before the training diverged, or repair that tensor",
            )


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.numel() == 0:
        return True
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    # A finite sum cannot contain anything infinite, and needs no memory; a sum that overflows is looked at again.
    return all(bool(part.sum().isfinite()) or bool(part.isfinite().all()) for part in _readable(tensor))


def _readable(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor in pieces of a type that can be added up without overflowing at once."""
    if tensor.dtype in (torch.float32, torch.float64):
        yield tensor
    elif tensor.dim() == 0:
        yield tensor.float()
    else:
        for piece in torch.split(tensor, max(1, tensor.shape[0] * 2**20 // tensor.numel())):
            yield piece.float()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
