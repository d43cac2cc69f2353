"""The documentation's code runs as printed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import small
from torch.nn import functional as F

import chansurg
from chansurg.surgery import recipe as registry

DOCS = Path(__file__).resolve().parents[1] / "docs"


def executed(document: str, **given: Any) -> dict[str, Any]:
    """The names that a document's first Python code leaves behind."""
    block = re.search(r"```python\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    exec(compile(block[1], document, "exec"), given)
    return given


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of WRITING-A-RECIPE.md, entered beside the installed ones."""
    namespace = executed("WRITING-A-RECIPE.md", __name__="gain_example")
    installed = dict(registry.installed_recipes())
    monkeypatch.setattr(registry, "installed_recipes", lambda: {**installed, "gain": namespace["RECIPE"]})


@pytest.mark.usefixtures("gain")
def test_the_recipe_of_the_documentation_converts_saves_and_reloads(tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    same = chansurg.convert(network, "gain", input_size=(3, 64, 64))
    doubled = chansurg.convert(network, "gain", input_size=(3, 64, 64), start=2.0)
    assert sum(1 for name in same.state_dict() if name.endswith(".factor")) == 17
    chansurg.save(doubled, tmp_path / "gain.safetensors")
    reloaded = chansurg.load(tmp_path / "gain.safetensors")
    with torch.no_grad():
        assert torch.equal(same(x), network(x))
        assert not torch.equal(doubled(x), network(x))
        assert torch.equal(reloaded(x), doubled(x))


def test_the_training_loop_of_the_documentation_lets_channels_go_and_slices() -> None:
    torch.manual_seed(0)
    network, steps = small.small(), 60
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    left = executed(
        "FINETUNING.md", chansurg=chansurg, torch=torch, F=F, network=network, steps=steps, steps_an_epoch=3, batches=[(x, labels)] * steps
    )
    masks = chansurg.masks(left["gated"])
    gone = sum(int((~kept).sum()) for kept in masks.values())
    assert gone > 0
    assert all(kept.any() for kept in masks.values())
    sliced = chansurg.slice(left["gated"], input_size=(3, 32, 32))
    assert chansurg.count(sliced, (3, 32, 32)).macs < chansurg.count(left["gated"], (3, 32, 32)).macs


def test_the_timing_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = executed("BENCHMARKING.md")["found"].rows
    assert [(row.setting.runtime, row.setting.batch_size) for row in rows] == [("eager", 1), ("eager", 4)]
    assert len(capsys.readouterr().out.splitlines()) == 2
