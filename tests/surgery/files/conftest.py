"""A small network of a factory's, converted, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import chansurg

TINY = "networks.small:tiny"


def tiny() -> nn.Module:
    return chansurg.load(TINY, input_size=(32,))


@pytest.fixture(scope="module")
def converted() -> nn.Module:
    return chansurg.convert(tiny(), "pix", mode="downscale", zeta=2)


@pytest.fixture
def file(converted: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "tiny-pix.safetensors"
    chansurg.save(converted, path)
    return path
