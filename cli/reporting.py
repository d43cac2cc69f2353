"""What a command says, and where: results on stdout, everything else on stderr, one JSON document where ``--json`` asks for it."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from chansurg.surgery.errors import ChansurgError

# A table on a pipe or in a log is not cut to a terminal that is not there.
PLAIN_WIDTH = 120


class Report:
    """The voice of one command.

    Args:
        as_json: print one JSON document and no table.
        quiet: print the result in one line, and no notes.
        verbose: print every detail.
        stdout: where results go; ``None`` is the process's.
        stderr: where everything else goes; ``None`` is the process's.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self._streams = (stdout or sys.stdout, stderr or sys.stderr)
        self.unmute()
        self._noted: set[str] = set()

    def mute(self) -> None:
        """Say nothing from here on."""
        nowhere = io.StringIO()
        self._speak_to(nowhere, nowhere)

    def unmute(self) -> None:
        """Speak again."""
        self._speak_to(*self._streams)

    def _speak_to(self, stdout: TextIO, stderr: TextIO) -> None:
        self.stdout = stdout
        self.out, self.err = _console(stdout), _console(stderr)

    def result(self, document: Mapping[str, Any], *, line: str, show: Callable[[], None]) -> None:
        """The command's answer: as JSON, as one line, or as ``show`` draws it."""
        if self.as_json:
            indent = 2 if self.stdout.isatty() else None
            self.stdout.write(json.dumps(_without_nan(document), indent=indent, allow_nan=False) + "\n")
            self.stdout.flush()
        elif self.quiet:
            self.out.print(line, soft_wrap=True)
        else:
            show()

    def say(self, text: str | Text, style: str = "") -> None:
        """A line of the result: whole on a pipe or in a file, broken between words on a terminal."""
        self.out.print(text, style=style, soft_wrap=not self.out.is_terminal)

    def item(self, text: str, style: str = "") -> None:
        """One of several lines under a heading; on a terminal its further lines stand in from its first."""
        if self.out.is_terminal:
            self.out.print(labelled(Text(" "), text), style=style)
        else:
            self.out.print(f"  {text}", style=style, soft_wrap=True)

    def note(self, text: str) -> None:
        """Something a reader should know beside the result; said once."""
        if not self.quiet and text not in self._noted:
            self._noted.add(text)
            self.err.print(Text(text, style="dim"), soft_wrap=not self.err.is_terminal)

    def error(self, error: ChansurgError) -> None:
        """A failure in its four parts."""
        if self.as_json:
            self.stdout.write(json.dumps({"error": error.parts()}) + "\n")
            self.stdout.flush()
            return
        whole = not self.err.is_terminal
        self.err.print(Text.assemble(("error: ", "bold red"), (error.what, "bold")), soft_wrap=whole)
        for label, text in (("where", error.where), ("not done", error.not_done), ("to do", error.to_do)):
            if whole:
                self.err.print(Text.assemble((f"  {label + ':':<10}", "cyan"), text), soft_wrap=True)
            else:
                self.err.print(labelled(Text(f"  {label + ':':<9}", style="cyan"), text))

    @contextmanager
    def progress(self, title: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
        """A callback that takes the number done and the number there is: a bar on a terminal, a line for each fifth elsewhere."""
        if self.quiet:
            yield None
        elif self.err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
            with Progress(*columns, console=self.err, transient=True) as bar:
                task = bar.add_task(title, total=None)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            fifths = 0

            def line(done: int, total: int) -> None:
                nonlocal fifths
                if done * 5 // total > fifths:
                    fifths = done * 5 // total
                    self.err.print(f"{title}: {done} of {total} {unit}", soft_wrap=True)

            yield line


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def grid(*columns: str) -> Table:
    """An open table; a column's name that starts with ``>`` holds numbers, aligned to the right."""
    named = any(column.removeprefix(">") for column in columns)
    table = Table(box=None, show_header=named, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column.removeprefix(">")), justify="right" if column.startswith(">") else "left", overflow="fold")
    return table


def labelled(label: Text, text: str) -> Table:
    """A text beside its label, with its further lines under its own beginning."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(label, Text(text))
    return table


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value
