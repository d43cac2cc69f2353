"""The file that a command writes: whether it may be written, asked before any work is done; and whether it has been."""

from __future__ import annotations

from pathlib import Path

from chansurg.surgery.errors import ChansurgError, InputError
from chansurg.surgery.files.writing import check_target, would_be_lost

_written: Path | None = None
_kept: str | None = None


def check_output(path: Path, *, inputs: list[Path], force: bool, again: bool = False) -> None:
    """Raise where writing ``path`` cannot work or would cost the user a file.

    Args:
        path: where the result is to go.
        inputs: files that are never replaced.
        force: replace any other file.
        again: let a file pass that may be what the command is about to write. Whether it is, byte for byte, shows when that is ready.

    Raises:
        InputError: with the reason.
    """
    check_target(path)
    if not path.exists():
        return
    if any(given.exists() and path.samefile(given) for given in inputs):
        raise InputError(
            "The output is the input; it would be lost.",
            where=str(path),
            not_done="Nothing was written.",
            to_do="Write to another file with -o.",
        )
    if force:
        return
    if not again:
        raise would_be_lost(path, "this would replace it")
    why = _no_repetition(path)
    if why is not None:
        raise would_be_lost(path, why)


def _no_repetition(path: Path) -> str | None:
    """Why the file, as far as its header tells, is not what a conversion writes."""
    import chansurg
    from chansurg.surgery.files.lineage import trained_since

    try:
        if not chansurg.history(path).journal:
            return "no conversion wrote it"
        return "the network in it was trained since its conversion" if trained_since(path) else None
    except (ChansurgError, OSError):
        return "no conversion wrote it"


def note_written(path: Path | None) -> None:
    """Remember that the command's file is there, whole; ``None`` as a command begins."""
    global _written
    _written = path


def note_kept(what: str | None) -> None:
    """Remember what an interrupt has left, and how to go on; ``None`` as a command begins."""
    global _kept
    _kept = what


def kept() -> str | None:
    """What an interrupt has left, if there is anything to go on with."""
    return _kept


def written() -> Path | None:
    """The file that the command has written, if it has come so far."""
    return _written
