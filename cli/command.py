"""How a function becomes a command: the options every command has, its failures told, its exit code.

A command is a function ``command(report, …)`` with typer's annotations, which returns an exit code or nothing. Its examples stand in
``EXAMPLES`` of its file.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer

from chansurg.cli.failures import fail
from chansurg.cli.interrupts import interrupted, watching
from chansurg.cli.reporting import Report

SHARED = "Output"
_OPTIONS = {
    "as_json": typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=SHARED),
    "quiet": typer.Option("--quiet", "-q", help="Print the result in one line, and no notes.", rich_help_panel=SHARED),
    "verbose": typer.Option("--verbose", "-v", help="Print every detail; for a bug, its traceback.", rich_help_panel=SHARED),
}


def exposed(command: Callable[..., int | None], extra: Sequence[inspect.Parameter] = ()) -> Callable[..., int]:
    """``command`` as typer sees it: without its report, with ``--json``, ``-q`` and ``-v``, and with ``extra`` options.

    Extra options arrive as keyword arguments of their own names.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name != "report" and p.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
        for name, option in _OPTIONS.items()
    ]
    keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *extra)]

    @functools.wraps(command)
    def called(*, as_json: bool, quiet: bool, verbose: bool, **values: Any) -> int:
        report = Report(as_json=as_json, quiet=quiet, verbose=verbose)
        with _surroundings(report), watching():
            try:
                return command(report, **values) or 0
            except Exception as error:
                if interrupted():
                    raise KeyboardInterrupt from error
                return fail(report, error)

    del called.__wrapped__  # typer must not look behind this signature
    called.__signature__ = signature.replace(parameters=[*keyword_only, *shared], return_annotation=int)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in (*keyword_only, *shared)}
    return called


@contextmanager
def _surroundings(report: Report) -> Iterator[None]:
    """The library's log on stderr; with ``--json`` also whatever a library or a network of the user's own prints."""
    log, handler = logging.getLogger("chansurg"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.setLevel(logging.ERROR if report.quiet else logging.INFO if report.verbose else logging.WARNING)
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr if report.as_json else sys.stdout):
            if not report.verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
