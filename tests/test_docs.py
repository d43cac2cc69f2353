"""The documentation's code runs as printed."""

import re
from pathlib import Path

import pytest
import torch
import torchvision

import chansurg
from chansurg.surgery import recipe as registry

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of WRITING-A-RECIPE.md, entered beside the installed ones."""
    text = (DOCS / "WRITING-A-RECIPE.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert block is not None
    namespace: dict[str, object] = {"__name__": "gain_example"}
    exec(compile(block[1], "WRITING-A-RECIPE.md", "exec"), namespace)
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
