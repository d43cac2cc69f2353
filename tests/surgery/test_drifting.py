"""How far a conversion drifts: the figures, what they are taken on, and where they are kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import small
from PIL import Image
from torch import Tensor, nn

import chansurg
from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.drift import HELD_OUT, IMAGES, NOISE, Drift, drift_of, ran_on
from chansurg.surgery.drifting import affordable_noise, drift, noise
from chansurg.surgery.images.unlabelled import open_unlabelled
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.landmarks import landmarks

SIZE = (3, 32, 32)


def network(**arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return small.small(**arguments).eval()


def changed(model: nn.Module, path: str, factor: float) -> nn.Module:
    twin = network()
    with torch.no_grad():
        twin.get_parameter(path).mul_(factor)
    return twin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(16):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def test_the_relative_error_is_that_of_the_definition() -> None:
    model, twin = network(), changed(network(), "fc.weight", 1.5)
    found = drift(model, twin, input_size=SIZE)
    x = torch.cat(list(noise(SIZE, found.inputs).batches()))
    with torch.no_grad():
        p, q = model(x), twin(x)
    assert found.kind == NOISE
    assert found.outputs == pytest.approx(((p - q).norm() / p.norm()).item(), rel=1e-3)
    assert found.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).float().mean().item())
    assert found.blocks == {"blocks.0": 0.0, "blocks.1": 0.0, "blocks.2": 0.0}


def test_errors_of_blocks_begin_where_the_change_is() -> None:
    found = drift(network(), changed(network(), "blocks.1.conv2.weight", 3.0), input_size=SIZE)
    assert found.blocks["blocks.0"] == 0
    assert all(found.blocks[path] for path in ("blocks.1", "blocks.2"))
    same = drift(network(), network(), input_size=SIZE)
    assert same.outputs == 0
    assert same.agreement == 1
    assert not any(same.blocks.values())


def test_nothing_of_the_networks_is_touched() -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    drift(model, network(), input_size=SIZE)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_are_what_it_is_measured_on(folder: Path) -> None:
    images = open_unlabelled(folder, Preprocessing(input_size=SIZE), samples=16)
    model, twin = network(), changed(network(), "fc.bias", -1.0)
    found = drift(model, twin, images)
    x = torch.cat(list(images.batches(5)))
    with torch.no_grad():
        p, q = model(x), twin(x)
    assert (found.kind, found.inputs) == (IMAGES, 16)
    assert found.outputs == pytest.approx(((p - q).norm() / p.norm()).item(), rel=1e-3)


class Rude(nn.Module):
    """Breaks on numbers, where it did not on shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if out.device.type != "meta":
            raise RuntimeError("no numbers today")
        return out


def test_a_network_that_does_not_run_is_told_and_converts_all_the_same() -> None:
    converted = chansurg.convert(Rude(), "pix", mode="downscale", input_size=SIZE)
    told = drift_of(chansurg.record_of(converted).journal[-1].results)
    assert told is not None
    assert told.reason is not None
    assert "no numbers today" in told.reason
    assert told.outputs is None


def test_a_network_that_does_not_run_cannot_be_calibrated(folder: Path) -> None:
    with pytest.raises(chansurg.InputError, match="does not run on the images: no numbers today"):
        chansurg.convert(Rude(), "pix", mode="downscale", calibrate=folder, samples=4, input_size=SIZE)


def test_an_image_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(chansurg.InputError, match="cannot be read"):
        drift(network(), network(), folder, input_size=SIZE)


def test_outputs_that_are_not_finite_have_no_number() -> None:
    found = drift(network(), changed(network(), "fc.weight", math.inf), input_size=SIZE)
    assert found.outputs is None
    assert found.blocks["blocks.2"] == 0


def test_what_the_landmarks_of_a_network_are() -> None:
    def of(model: nn.Module) -> list[str]:
        return landmarks(survey(model, (3, 64, 64)))

    assert of(torchvision.models.resnet18()) == [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert of(torchvision.models.vgg11_bn()) == [f"features.{index}" for index in (10, 13, 17, 20, 24, 27)]
    assert "features.denseblock1" in of(torchvision.models.densenet121())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_conversion_keeps_its_drift_in_the_journal(inplace: bool) -> None:
    original = network()
    converted = chansurg.convert(network(), "pix", mode="downscale", inplace=inplace, input_size=SIZE)
    told = drift_of(chansurg.record_of(converted).journal[-1].results)
    assert told == drift(original, converted, input_size=SIZE)
    assert told is not None
    assert set(told.blocks) == {"blocks.0", "blocks.1", "blocks.2"}
    assert all(told.blocks.values())
    assert Drift(**vars(told)).as_json() == chansurg.record_of(converted).journal[-1].results["drift"]


def test_a_large_network_is_given_less_noise() -> None:
    assert affordable_noise(10**6) == 8
    assert affordable_noise(2 * 10**9) == 2
    assert affordable_noise(10**12) == 1


def test_how_inputs_are_told() -> None:
    assert [ran_on(NOISE, 1), ran_on(NOISE, 8), ran_on(IMAGES, 1), ran_on(HELD_OUT, 64)] == [
        "1 input of normal noise",
        "8 inputs of normal noise",
        "1 image",
        "64 held-out images",
    ]


@pytest.mark.parametrize("data", [{}, {"drift": 3}, {"drift": {"kind": 1}}, {"drift": {"kind": "x", "inputs": 1, "blocks": [1]}}])
def test_results_in_another_form_tell_of_no_drift(data: dict[str, Any]) -> None:
    assert drift_of(data) is None
