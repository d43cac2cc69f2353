"""The demonstration's network is what its script trained, and chansurg can convert it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chansurg

ROOT = Path(__file__).parents[2]
FILE = ROOT / "demo" / "digits-resnet.safetensors"
FACTORY = "demo.digits:network"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_the_shipped_network_reads_held_out_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from demo.digits import digits, write_image_folder

    assert FILE.stat().st_size <= 500_000
    network = chansurg.load(FILE, arch=FACTORY)
    pixels, labels = digits()["val"]
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        correct = int((network((pixels[:, None] / 255 - mean) / std).argmax(1) == labels).sum())
    assert (correct, len(labels)) == (497, 500)
    write_image_folder(tmp_path)
    assert chansurg.evaluate(network, tmp_path).top1 == 100 * correct / 500


def test_it_was_trained_from_scratch_by_its_script() -> None:
    pytest.importorskip("sklearn")
    from demo.train_digits import SETTINGS

    record = chansurg.history(FILE)
    (entry,) = record.journal
    assert entry.kind == "finetune"
    assert entry.parent_file is None
    assert entry.options["teacher"] is None
    assert {name: entry.options[name] for name in SETTINGS} == SETTINGS
    assert entry.results["val_top1"] == 99.4
    assert record.class_names == tuple("0123456789")


def test_its_squeezes_are_sites_of_pix_and_all_its_convolutions_of_pcs() -> None:
    network = chansurg.load(FILE, arch=FACTORY)
    sites = chansurg.plan(network, "pix").sites
    assert [site.path for site in sites] == [f"layer{stage}.{block}.conv1" for stage in (1, 2) for block in range(3)]
    convolutions = {path for path, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert {site.path for site in chansurg.plan(network, "pcs").sites} == convolutions
