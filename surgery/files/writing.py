"""Writing a file whole or not at all. No torch is imported here."""

from __future__ import annotations

import errno
import filecmp
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from chansurg.surgery.errors import ChansurgError, InputError, Refusal


def write_whole(target: Path, write: Callable[[Path], object], *, overwrite: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``target``, flush it to the disk, and rename it.

    Args:
        target: where the file goes.
        write: fills the file of the path that it is given.
        overwrite: replace an existing file, whatever it holds. Without it, only one that holds the very same bytes already.

    Raises:
        InputError: where the folder does not exist or cannot be written to, or an existing file would be lost.
        Refusal: where the disk is full or fails.
    """
    check_target(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:40]}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_error(target, error) from error
        raise _no_target(f"The folder {target.parent} cannot be written to ({error.strerror}).", target) from error
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if not overwrite and target.exists() and not filecmp.cmp(temporary, target, shallow=False):
            raise would_be_lost(target, "it holds something else than what would be written now")
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise _disk_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def would_be_lost(target: Path, why: str) -> InputError:
    """The error for a target that exists and is not replaced unasked; ``why`` says what would be lost with it."""
    return InputError(
        f"The output exists, and {why}.",
        where=str(target),
        not_done="Nothing was written.",
        to_do="Pass --force (in Python: overwrite=True) to replace it, or write elsewhere with -o.",
    )


def check_target(target: Path) -> None:
    """See, before any work is done, that a file can be written there.

    Raises:
        InputError: where it cannot.
    """
    folder = target.parent
    try:
        what = _unfit(target, folder)
    except (OSError, ValueError) as error:
        what = f"{str(target)[:200]!r} is no name for a file: {error}."
    if what is not None:
        raise _no_target(what, target)


def _unfit(target: Path, folder: Path) -> str | None:
    what = None
    if "\0" in str(target):
        raise ValueError("it contains a null byte")
    if not folder.exists():
        what = f"The folder {folder} does not exist."
    elif not folder.is_dir():
        what = f"{folder} is not a folder."
    elif target.is_dir():
        what = f"{target} is a folder."
    elif target.exists() and not target.is_file():
        what = f"{target} is not an ordinary file."
    elif not os.access(folder, os.W_OK | os.X_OK):
        what = f"The folder {folder} cannot be written to."
    return what


def _no_target(what: str, target: Path) -> InputError:
    return InputError(
        what, where=str(target), not_done="Nothing was written.", to_do="Name a file in an existing, writable folder with -o."
    )


def _disk_error(target: Path, error: Exception) -> ChansurgError:
    full = (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in str(error)
    return Refusal(
        "The disk is full." if full else f"The file could not be written: {error}",
        where=str(target),
        not_done="No file was left behind; an earlier one of that name is untouched.",
        to_do="Free some space or write elsewhere with -o." if full else "Check the disk, or write elsewhere with -o.",
    )
