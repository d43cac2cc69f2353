"""The process's output streams, made so that a report does not fail on them."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Escape what a stream's encoding cannot write, and let a stream that was closed take everything in silence."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # it lives as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Let what is still buffered go nowhere, instead of failing once more as the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
