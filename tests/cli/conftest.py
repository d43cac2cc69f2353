from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from chansurg.cli.application import run
from chansurg.surgery.reading.builders import fresh, parse_architecture


@dataclass
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command in this process, in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def resnet20(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR ResNet-20 checkpoint with seeded random weights."""
    path = tmp_path_factory.mktemp("models") / "resnet20.pth"
    torch.save(fresh(parse_architecture("cifar/resnet20"), seed=1).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def converted(resnet20: Path) -> Path:
    """That checkpoint after PiX in downscale mode, beside it."""
    path = resnet20.with_name("resnet20-pix.safetensors")
    assert run(["convert", str(resnet20), "--recipe", "pix", "--mode", "downscale", "-o", str(path), "-q"]) == 0
    return path
