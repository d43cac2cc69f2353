"""Every way a command can fail, as one message in four parts and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

from chansurg.cli.reporting import Report
from chansurg.surgery.errors import ChansurgError, InputError, Refusal

INTERRUPTED = 130
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}


def fail(report: Report, error: Exception) -> int:
    """Tell of ``error`` and give the exit code that belongs to it."""
    if isinstance(error, BrokenPipeError):
        return reader_gone()
    if report.verbose and not isinstance(error, ChansurgError):
        report.err.print("".join(traceback.format_exception(error)), soft_wrap=True)
    told = explain(error)
    report.error(told)
    return told.exit_code


def reader_gone() -> int:
    """The exit code where the reader of a pipe (`| head`) has gone; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def tell_interrupted(report: Report) -> int:
    """Tell of an interrupt, in one line, and give its exit code."""
    told = Refusal("Interrupted.", where="this command", not_done="Nothing was written.", to_do="Run it again when you like.")
    if report.as_json:
        report.error(told)
    else:
        report.err.print("Interrupted; nothing was written.")
    return INTERRUPTED


def explain(error: Exception) -> ChansurgError:
    """Any exception as one of ours."""
    if isinstance(error, ChansurgError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return Refusal(
            f"The disk is full: {error.strerror}.",
            where=str(error.filename or "the output's folder"),
            not_done="The output was not written, and no part of it was left.",
            to_do="Make room, or write elsewhere with -o.",
        )
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return InputError(
            f"{error.strerror}.",
            where=str(error.filename or "a file of this command"),
            not_done="Nothing was written.",
            to_do="Check that the path exists and that you may read or write there.",
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Refusal(
            "There is not enough memory.",
            where=str(error).splitlines()[0] if str(error) else "this machine",
            not_done="Nothing was written.",
            to_do="Use a smaller --batch-size or --input-size, or a machine with more memory.",
        )
    first = str(error).splitlines()[0] if str(error) else ""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    return Refusal(
        f"This is a bug in chansurg: {type(error).__name__}{': ' if first else ''}{first}",
        where=f"{frame[0].filename}, line {frame[0].lineno}" if frame else "unknown",
        not_done="Nothing was written.",
        to_do="Run it again with -v for the traceback, and report both with the command you ran.",
    )
