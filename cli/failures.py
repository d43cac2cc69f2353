"""Every way a command can fail, as one message in four parts and an exit code."""

from __future__ import annotations

import errno
import traceback

from chansurg.cli.output_file import kept, written
from chansurg.cli.reporting import Report
from chansurg.cli.streams import drop_stdout
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
    output = written()
    if output is not None:
        told = type(told)(
            told.what,
            where=told.where if isinstance(error, ChansurgError) else "the report",
            not_done=f"The file was written, whole: {output}. Only this report failed.",
            to_do=f"Use the file; `chansurg history {output}` shows what was done.",
        )
    report.error(told)
    return told.exit_code


def reader_gone() -> int:
    """The exit code where the reader of a pipe (`| head`) has gone."""
    drop_stdout()
    return 1


def stdout_lost(error: OSError, *, told: bool) -> int:
    """Tell on stderr, once, that nothing can be written to stdout (a full disk behind `>`), and give the exit code."""
    drop_stdout()
    return Refusal.exit_code if told else fail(Report(), error)


def tell_interrupted(report: Report) -> int:
    """Tell of an interrupt, in one line, and give its exit code."""
    output = written()
    done = kept() or ("nothing was written" if output is None else f"the file was written before: {output}")
    if report.as_json:
        told = f"{done[0].upper()}{done[1:]}."
        report.error(Refusal("Interrupted.", where="this command", not_done=told, to_do="Run it again when you like."))
    else:
        report.err.print(f"Interrupted; {done}.", soft_wrap=True)
    return INTERRUPTED


def explain(error: Exception) -> ChansurgError:
    """Any exception as one of ours."""
    if isinstance(error, ChansurgError):
        return error
    if isinstance(error, OSError) and error.errno in _FULL:
        return Refusal(
            f"The disk is full: {error.strerror}.",
            where=str(error.filename or "the standard output"),
            not_done="The result could not be written there.",
            to_do="Make room, or write elsewhere.",
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
