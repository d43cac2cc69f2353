"""Layers of the tests' own that edits may name."""

from __future__ import annotations

import pytest

from chansurg.surgery.editing import building


@pytest.fixture
def test_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of ``tests/networks/layers.py``, under the engine's name."""
    for name in ("Weighting", "Difference", "Selecting", "Fusing"):
        monkeypatch.setitem(building._ENGINE_LAYERS, name, "networks.layers")
