"""Whether a result may be written where it is to go; asked before any work is done."""

from __future__ import annotations

from pathlib import Path

from chansurg.surgery.errors import ChansurgError, InputError
from chansurg.surgery.writing import check_target


def check_output(path: Path, *, inputs: list[Path], force: bool) -> None:
    """Raise where writing ``path`` cannot work or would cost the user a file.

    A file that an earlier conversion wrote may be written again. Any other file is only replaced with ``force``, and an input never.

    Raises:
        InputError: with the reason.
    """
    check_target(path)
    if not path.exists():
        return
    if any(given.exists() and path.samefile(given) for given in inputs):
        raise _refused("The output is the input; it would be lost.", path, "Write to another file with -o.")
    if not force and not _written_by_a_conversion(path):
        raise _refused("The output exists, and no conversion wrote it.", path, "Pass --force to replace it, or write elsewhere with -o.")


def _written_by_a_conversion(path: Path) -> bool:
    import chansurg

    try:
        return bool(chansurg.history(path).journal)
    except (ChansurgError, OSError):
        return False


def _refused(what: str, path: Path, to_do: str) -> InputError:
    return InputError(what, where=str(path), not_done="Nothing was written.", to_do=to_do)
