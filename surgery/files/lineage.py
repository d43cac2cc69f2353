"""A file's history, and the way back to the file it was made from. No torch is imported here."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.header_record import Layout, record_in_header
from chansurg.surgery.journal import Record
from chansurg.surgery.reading.header import existing_file, file_sha256, read_header

EXPORTED = (".onnx", ".pt2")
"""How the names of exported files end."""


def history(path: str | os.PathLike[str]) -> Record:
    """The record in a model file's header, or in a file that ``chansurg.export`` wrote: architecture, preprocessing, journal.

    Raises:
        InputError: where the file is neither, or carries no record.
    """
    if Path(path).suffix in EXPORTED:
        from chansurg.surgery.delivery.exported_record import exported_record

        return replace(exported_record(path), file=Path(path).name)
    record, _ = record_in_header(read_header(path), path)
    return replace(record, file=Path(path).name)


def trained_since(path: str | os.PathLike[str]) -> bool:
    """Whether the tensors in a model file are no longer those that its last conversion left.

    Raises:
        InputError: where the file is no safetensors file, or carries no record.
    """
    return _trained_last(*record_in_header(read_header(path), path))


def _trained_last(record: Record, layout: Layout) -> bool:
    return bool(record.journal) and layout.weights != record.journal[-1].weights


def undo(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    discard_training: bool = False,
) -> Path:
    """Give back exactly the file that the last conversion started from.

    It is known by its hash, so nothing but that very file will do. It is looked for beside the converted file, or named. Where several
    conversions were made in memory one after the other, it is the file that the first of them started from.

    Args:
        path: a converted file.
        base: the parent, where it is elsewhere.
        output: where a copy is written; without it the parent's own path is returned and nothing is written.
        discard_training: go back although the network was trained since, or between two conversions.

    Returns:
        The path of the parent, or of the copy.

    Raises:
        InputError: where there is nothing to undo, or ``base`` is another file.
        Refusal: where the parent is not found, or training would be lost.
    """
    record, layout = record_in_header(read_header(path), path)
    if not record.journal:
        raise InputError(
            "Nothing was done to this network.", where=str(path), not_done="Nothing was undone.", to_do="There is nothing to do."
        )
    between = not all(entry.untouched for entry in record.journal)
    if (between or _trained_last(record, layout)) and not discard_training:
        raise Refusal(
            "The tensors are no longer those that the conversion left: the network was trained since.",
            where=str(path),
            not_done="Nothing was undone.",
            to_do="The parent file knows nothing of that training. To go back all the same: --discard-training.",
        )
    known = [(entry.parent_sha256, entry.parent_file) for entry in record.journal if entry.parent_sha256 is not None]
    wanted, name = known[-1] if known else (None, None)
    if wanted is None:
        raise Refusal(
            "This network was not converted from a file, so there is no parent file.",
            where=str(path),
            not_done="Nothing was undone.",
            to_do="Build the original again and convert it anew.",
        )
    parent = _find(Path(path), wanted, name, None if base is None else Path(base))
    if output is None:
        return parent
    from chansurg.surgery.files.writing import write_whole

    target = Path(output)
    write_whole(target, lambda temporary: shutil.copyfile(parent, temporary))
    return target


def original_of(path: str | os.PathLike[str]) -> tuple[str, Path | None] | None:
    """The file that a converted network's first conversion started from: its name, and where it lies beside ``path``, if it does.

    ``None`` for a file that was not converted from one, or is no model file.
    """
    try:
        record = history(path)
    except InputError:
        return None
    first = next((entry for entry in record.journal if entry.kind == "convert"), None)
    if first is None or first.parent_sha256 is None or first.parent_file is None:
        return None
    return first.parent_file, _beside(Path(path), first.parent_sha256, first.parent_file)


def _sha256_or_none(file: Path) -> str | None:
    try:
        return file_sha256(file)
    except InputError:  # an empty or unreadable file beside it is not the parent
        return None


def _find(path: Path, wanted: str, name: str | None, base: Path | None) -> Path:
    if base is not None:
        if file_sha256(existing_file(base)) == wanted:
            return base
        raise InputError(
            f"{base} is not the file that {path.name} was made from.",
            where=str(base),
            not_done="Nothing was undone.",
            to_do=f"Name the original{f' ({name})' if name else ''}; its SHA-256 begins with {wanted[:12]}.",
        )
    if (parent := _beside(path, wanted, name)) is not None:
        return parent
    raise Refusal(
        f"The file that {path.name} was made from{f' ({name})' if name else ''} is not beside it.",
        where=str(path.resolve().parent),
        not_done="Nothing was undone.",
        to_do=f"Name it with --base FILE; its SHA-256 begins with {wanted[:12]}.",
    )


def _beside(path: Path, wanted: str, name: str | None) -> Path | None:
    """The file with this hash in the folder where ``path`` is."""
    beside = sorted((file for file in path.resolve().parent.iterdir() if file.is_file()), key=lambda file: (file.name != name, file.name))
    for file in beside:
        if (file.name == name or file.suffix == Path(name or "").suffix) and _sha256_or_none(file) == wanted:
            return file
    return None
