"""What can be told of a file without torch: its hash, and a safetensors file's header.

The format: eight bytes with the header's length (little-endian), a JSON object, then the tensors' bytes without gaps. The object maps
a tensor's name to ``dtype``, ``shape`` and ``data_offsets``, and ``__metadata__`` to strings.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from chansurg.surgery.errors import InputError

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class _Broken(Exception):
    """What is wrong with a header, said in one sentence."""


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path, if it is a readable file with anything in it.

    Raises:
        InputError: it is missing, a directory, empty or unreadable.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise unusable(file, "This is a directory, not a file.", "name the model file itself")
        if not file.exists():
            raise unusable(file, "There is no such file.", "check the path; names are taken from the current directory")
        if not file.is_file():
            raise unusable(file, "This is not an ordinary file.", "name a model file")
        if file.stat().st_size == 0:
            raise unusable(file, "The file is empty.", "copy or download it again")
        with file.open("rb"):
            return file
    except (OSError, ValueError) as error:
        raise unusable(file, f"The file cannot be read: {error}", "check the path and its permissions") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file's bytes, in hexadecimal.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    file = existing_file(path)
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unusable(file, f"The file cannot be read: {error}", "check the disk and its permissions") from error


def looks_like_safetensors(path: Path) -> bool:
    """Whether the first bytes are those of a safetensors file: a length, then an opening brace."""
    with path.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES + 1)
    return len(start) == _LENGTH_BYTES + 1 and start[_LENGTH_BYTES:] == b"{"


def read_header(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, checked against the file's size; no tensor is read and torch is not needed.

    Raises:
        InputError: no such file, no safetensors file, or a header that is truncated, broken or inconsistent.
    """
    file = existing_file(path)
    try:
        header = _parse(file)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _Broken("its metadata are not a mapping of names to strings")
        _check_layout(header, file)
    except (_Broken, OSError) as error:
        raise unusable(file, f"The safetensors header is damaged: {error}.", "copy or download the file again, or save it again") from error
    return metadata


def unusable(file: Path, what: str, to_do: str) -> InputError:
    """The error for a model file that could not be read."""
    return InputError(what, where=str(file), not_done="no tensor was loaded, nothing was executed or written", to_do=to_do)


def _parse(file: Path) -> dict[str, Any]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise _Broken("it announces more bytes than the file has, so the file is cut short or no safetensors file")
        if length > _LONGEST_HEADER:
            raise _Broken(f"it announces {length} bytes, more than any real header")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise _Broken("it nests deeper than any real header") from None
    except ValueError as error:
        raise _Broken(f"it is not valid JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise _Broken("it is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Broken("a name occurs in it twice")
    return found


def _check_layout(header: Mapping[str, Any], file: Path) -> None:
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise _Broken(f"the entry of '{name[:80]}' is no object")
        shape, offsets, bits = entry.get("shape"), entry.get("data_offsets"), _BITS.get(str(entry.get("dtype")))
        if bits is None:
            raise _Broken(f"'{name[:80]}' has the unknown dtype {str(entry.get('dtype'))[:40]!r}")
        if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
            raise _Broken(f"'{name[:80]}' has no proper shape and offsets")
        begin, end = offsets
        if end < begin or math.prod(shape) * bits != 8 * (end - begin):
            raise _Broken(f"the bytes of '{name[:80]}' do not agree with its shape and dtype")
        spans.append((begin, end))
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _Broken("its tensors overlap, or leave gaps between them")
        at = end
    data = file.stat().st_size - _LENGTH_BYTES - length
    if at != data:
        raise _Broken(f"its tensors take {at} bytes and the file holds {data}, so the file is cut short or has a tail")


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in value)
