"""A command that runs in several processes at once, as ``torchrun`` starts them: the first one speaks for all."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from chansurg.cli.failures import INTERRUPTED
from chansurg.cli.reporting import Report
from chansurg.surgery.errors import ChansurgError


@contextmanager
def speaking_once(report: Report) -> Iterator[None]:
    """Mute the report inside, in all processes but the first.

    Failures that are told in four parts are the same in all of them, and so is an interrupt; whatever else goes wrong in one is told by it.
    """
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    report.mute()
    logging.getLogger("chansurg").setLevel(logging.ERROR)
    try:
        yield
    except ChansurgError:
        raise
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception:
        report.unmute()
        raise
