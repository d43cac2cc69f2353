"""A wish to stop, noted and granted between two steps: an interrupt in the middle of one would leave weights half changed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was interrupted, and its state is saved; the text says how to go on."""


class Wish:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.stop = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A launcher passes on to each process what the terminal has sent to all of them, so there a second signal is no impatience.
        if self.stop and "LOCAL_RANK" not in os.environ:
            raise KeyboardInterrupt
        self.stop = True


@contextmanager
def watched() -> Iterator[Wish]:
    """Note SIGINT and SIGTERM inside, instead of what they do outside; outside the main thread, where Python delivers none, do nothing."""
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, wish._note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
