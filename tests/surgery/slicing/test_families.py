"""Sliced is masked, over networks of every family: after a step of training, with large norm shifts, under random masks."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import small
from torch import Tensor, nn

from benchmarks.slicing_errors import built, prepared, slicings
from chansurg.surgery.gating import gates
from chansurg.surgery.slicing.proof import ROUNDINGS, TOLERANCE

FAMILIES = {
    "cifar/resnet20": 32,
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "vgg16": 32,
    "mobilenet_v2": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "regnet_y_400mf": 32,
    "convnext_tiny": 32,
    "googlenet": 64,
    "swin_t": 32,
    "vision transformer": 32,
}
DRAWS = 2


def network_of(name: str) -> nn.Module:
    """The family's network; VGG's first linear layers, which take most of its time, with fewer channels."""
    if name == "vision transformer":
        return small.vision_transformer().eval()
    network = built(name)
    if name.startswith("vgg"):
        network.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64), nn.ReLU(True), nn.Linear(64, 32), nn.ReLU(True), nn.Linear(32, 8))
    return network


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = network(x)
        return result.double()


def apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().amax(1) / a.abs().amax(1)).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sliced_network_is_the_masked_one(name: str) -> None:
    size = (3, FAMILIES[name], FAMILIES[name])
    network = prepared(network_of(name), size)
    assert gates(network)
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(5))
    for draw, sliced in enumerate(slicings(network, size, DRAWS)):
        same_size = sum(p.numel() for p in sliced.parameters()) == sum(p.numel() for p in network.parameters())
        assert same_size == (draw == 1)  # where nothing is masked
        single, single_sliced = run(network, x), run(sliced, x)
        exact, exact_sliced = (run(copy.deepcopy(each).double(), x.double()) for each in (network, sliced))
        assert apart(exact, exact_sliced) <= TOLERANCE[torch.float64]
        # No rearrangement is nearer than what the masked network itself rounds; of these families only VGG's rounds as much as the limit.
        assert apart(single, single_sliced) <= max(TOLERANCE[torch.float32], ROUNDINGS * apart(exact, single))
