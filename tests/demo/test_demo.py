"""The demonstration's network is what its script trained, and chansurg can convert it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chansurg

ROOT = Path(__file__).parents[2]
FILE = ROOT / "demo" / "digits-resnet.safetensors"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_shipped_network_reads_held_out_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from demo.digits import as_input, digits, network, write_image_folder

    assert FILE.stat().st_size <= 500_000
    model = network()
    model.load_state_dict(load_file(FILE))
    pixels, labels = digits()["val"]
    with torch.no_grad():
        correct = int((model.eval()(as_input(pixels)).argmax(1) == labels).sum())
    assert (correct, len(labels)) == (498, 500)
    write_image_folder(tmp_path)
    loaded = chansurg.load(FILE, arch="demo.digits:network", input_size=(8,))
    assert chansurg.evaluate(loaded, tmp_path).top1 == 100 * correct / 500


def test_training_is_reproducible() -> None:
    pytest.importorskip("sklearn")
    from demo.digits import network
    from demo.training import train

    threads = torch.get_num_threads()
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = network()
        train(model, epochs=1, learning_rate=0.1)
        states.append(model.state_dict())
    torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_its_squeezes_are_sites() -> None:
    model = chansurg.load(FILE, arch="demo.digits:network", input_size=(8,))
    sites = chansurg.plan(model, "pix").sites
    assert [site.path for site in sites] == [f"layer{stage}.{block}.conv1" for stage in (1, 2) for block in range(3)]
