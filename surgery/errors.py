"""Errors that teach: what was wrong, where, what was not done because of it, and what to do.

Everything that a user can cause is raised as one of these two classes. The command line turns them into one message in four
parts and an exit code; from Python they are ordinary exceptions. No torch is imported here.
"""

from __future__ import annotations

from functools import partial


def _sentence(text: str) -> str:
    """A fragment with a capital and a full stop; what begins with a capital already is as its author wants it."""
    if not text[:1].islower():
        return text
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…", "`")) else ".")


class ChansurgError(Exception):
    """A failure told in four parts.

    Args:
        what: what was wrong, one sentence.
        where: the file, option, module path or site in question.
        not_done: what was left undone because of it ("nothing was written").
        to_do: what the user can do now.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, not_done: str, to_do: str) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.not_done = _sentence(not_done)
        self.to_do = _sentence(to_do)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries (data loading workers) whole."""
        return partial(type(self), self.what, where=self.where, not_done=self.not_done, to_do=self.to_do), ()

    def __str__(self) -> str:
        return f"{self.what}\n  where:    {self.where}\n  not done: {self.not_done}\n  to do:    {self.to_do}"

    def parts(self) -> dict[str, str]:
        """The four parts, as ``--json`` prints them under ``error``."""
        return {"what": self.what, "where": self.where, "not_done": self.not_done, "to_do": self.to_do}


class InputError(ChansurgError):
    """Bad input or usage: the command could not run (exit code 2)."""

    exit_code = 2


class Refusal(ChansurgError):
    """It ran and the answer is no: no site, unequal, disk full (exit code 1)."""

    exit_code = 1
