"""A benchmark is a process of its own and silences the log for good; a test gives it back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    before = logging.root.manager.disable
    yield
    logging.disable(before)
