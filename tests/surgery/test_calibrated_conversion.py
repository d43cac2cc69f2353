"""Conversions with images: what is measured first, fitted afterwards, and told in the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import small
from PIL import Image
from torch import nn

import chansurg
from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.drift import HELD_OUT, drift_of
from chansurg.surgery.drifting import drift
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.images.unlabelled import Unlabelled, open_unlabelled

SIZE = (3, 32, 32)
DOWNSCALE: dict[str, Any] = {"recipe": "pix", "mode": "downscale", "input_size": SIZE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("images")
    for index in range(32):
        coarse = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32)).save(found / f"{index:02}.png")
    return found


@pytest.fixture
def images(folder: Path) -> Unlabelled:
    return open_unlabelled(folder, Preprocessing(input_size=SIZE), samples=32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return small.small().eval()


def test_calibrating_brings_the_network_nearer_and_the_journal_tells(folder: Path, images: Unlabelled, tmp_path: Path) -> None:
    plain = chansurg.convert(network(), **DOWNSCALE)
    fitted = chansurg.convert(network(), **DOWNSCALE, calibrate=folder, samples=32, refine=0)
    entry = chansurg.record_of(fitted).journal[-1]
    told = drift_of(entry.results)
    assert told is not None
    assert (told.kind, told.inputs) == (HELD_OUT, 4)
    held_out = images.divided()[1]
    assert told.outputs == drift(network(), fitted, held_out).outputs
    before = drift(network(), plain, held_out).outputs
    assert before is not None
    assert told.outputs is not None
    assert told.outputs < before
    assert entry.fitted
    assert (entry.kept or 0) + len(entry.fitted) + len(entry.sliced) + len(entry.new) == len(fitted.state_dict())
    assert entry.weights == weights_digest(fitted)
    original = network().state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in fitted.state_dict().items() if name in _kept(entry, fitted))
    chansurg.save(fitted, tmp_path / "fitted.safetensors")
    reloaded = chansurg.history(tmp_path / "fitted.safetensors").journal[-1]
    assert reloaded.fitted == entry.fitted
    assert reloaded.results == entry.results


def _kept(entry: Any, converted: nn.Module) -> set[str]:
    return set(converted.state_dict()) - {*entry.fitted, *entry.sliced, *entry.new}


@pytest.mark.parametrize("recipe", ["pix", "mod"])
def test_the_same_images_and_seed_give_the_same_numbers_in_place_too(folder: Path, recipe: str) -> None:
    options: dict[str, Any] = {"mode": "downscale"} if recipe == "pix" else {"blocks": "all"}
    line: dict[str, Any] = {**options, "calibrate": folder, "samples": 16, "refine": 2, "input_size": SIZE}
    first = chansurg.convert(network(), recipe, **line)
    second = chansurg.convert(network(), recipe, inplace=True, **line)
    assert chansurg.record_of(first).journal[-1].as_json() == chansurg.record_of(second).journal[-1].as_json()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_what_is_the_same_function_already_stays_so(folder: Path) -> None:
    gated = chansurg.convert(network(), "pcs", calibrate=folder, samples=16, input_size=SIZE)
    entry = chansurg.record_of(gated).journal[-1]
    assert not entry.fitted
    assert entry.results["drift"]["outputs"] == 0


def test_each_trial_of_where_to_cut_is_calibrated(folder: Path) -> None:
    planned = chansurg.plan(network(), **DOWNSCALE, calibrate=folder, samples=16, max_blocks=1)
    plain = chansurg.plan(network(), **DOWNSCALE, max_blocks=1)
    assert planned.choice is not None
    assert planned.choice.calibrated
    assert planned.choice.kind == HELD_OUT
    assert plain.choice is not None
    assert not plain.choice.calibrated


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"refine": 3}, "needs images"),
        ({"calibrate": "folder", "refine": -1}, "no number of steps"),
        ({"calibrate": "folder", "samples": 0}, "0 images were asked for"),
        ({"calibrate": "nowhere"}, "nowhere"),
    ],
)
def test_bad_requests(folder: Path, line: dict[str, Any], told: str) -> None:
    given = {**line, "calibrate": folder} if line.get("calibrate") == "folder" else line
    with pytest.raises(chansurg.InputError) as refused:
        chansurg.convert(network(), **DOWNSCALE, **given)
    assert told in refused.value.what + refused.value.where
