"""Ctrl-C, remembered.

The exception that an interrupt raises can be swallowed, most of all by libraries that guard their imports; the command would then go on
as if nothing had been asked. So the wish is noted as well, and looked at again before anything is written.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_wished = False


@contextmanager
def watching() -> Iterator[None]:
    """Note interrupts inside; outside the main thread, where Python delivers none, this does nothing."""
    global _wished
    _wished = False
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def interrupted() -> bool:
    """Whether an interrupt came since watching began."""
    return _wished


def stop_if_interrupted() -> None:
    """Raise the interrupt again if one was swallowed.

    Raises:
        KeyboardInterrupt: in that case.
    """
    if _wished:
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _wished
    _wished = True
    raise KeyboardInterrupt
