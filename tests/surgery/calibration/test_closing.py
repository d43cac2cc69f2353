"""Layers whose output is moved and scaled on its way to the addition that closes their block."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks.matrix import lively
from torch import Tensor, fx, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import chansurg
from chansurg.surgery.calibration import calibrate
from chansurg.surgery.calibration.closing import Closing, closing
from chansurg.surgery.images.unlabelled import Unlabelled
from chansurg.surgery.survey import survey

Pictures = Callable[[int, int], Unlabelled]
SIDE = 32
LAST = "block.5"  # the linear layer of a block that its layer scale multiplies


def scaled() -> nn.Module:
    torch.manual_seed(0)
    network = ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=10)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("layer_scale"):
                parameter.copy_(torch.rand_like(parameter) + 0.2)
            elif parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
    return lively(network, torch.randn(8, 3, SIDE, SIDE)).eval()


def folded(network: nn.Module) -> nn.Module:
    """The same function, with nothing left for the layer scales to do."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith(LAST):
                scale = network.get_submodule(name.removesuffix(f".{LAST}")).layer_scale
                module.weight.mul_(scale.view(-1, 1))
                module.bias.mul_(scale.flatten())
                scale.fill_(1.0)
    return network


def way_of(network: nn.Module, path: str) -> tuple[Closing, fx.Node]:
    region = survey(network, (3, SIDE, SIDE)).regions[0]
    node = next(node for node in region.nodes if node.target == path)
    found = closing(tuple(region.nodes), node)
    assert found is not None
    return found, node


def test_a_block_behind_a_layer_scale_makes_up_for_what_is_lost_before_it(pictures: Pictures) -> None:
    network = scaled()
    converted = chansurg.convert(network, "mod", input_size=(3, SIDE, SIDE))
    told = calibrate(network, converted, pictures(64, SIDE), refine=0)
    segment = next(segment for segment in told.segments if f"features.1.0.{LAST}" in segment.layers)
    assert segment.solved < 0.85 * segment.before


def test_a_scale_that_is_folded_into_its_layer_gives_the_same_function(pictures: Pictures) -> None:
    images = pictures(64, SIDE)
    outputs = []
    for network in (scaled(), folded(scaled())):
        converted = chansurg.convert(network, "slimconv", input_size=(3, SIDE, SIDE))
        told = calibrate(network, converted, images, refine=0)
        assert any(path.endswith(LAST) for segment in told.segments for path in segment.layers)
        with torch.no_grad():
            outputs.append(converted(next(images.batches(16))))
    assert float((outputs[0] - outputs[1]).norm() / outputs[0].norm()) < 1e-3


def test_a_channel_that_hardly_counts_keeps_its_weights(pictures: Pictures) -> None:
    network = scaled()
    with torch.no_grad():
        network.get_submodule("features.1.0").layer_scale[:2] = torch.tensor([0.0, 1e-5]).view(2, 1, 1)
    converted = chansurg.convert(network, "mod", input_size=(3, SIDE, SIDE))
    before = converted.get_submodule(f"features.1.0.{LAST}").weight.clone()
    told = calibrate(network, converted, pictures(64, SIDE), refine=0)
    assert any(f"features.1.0.{LAST}" in segment.layers for segment in told.segments)
    after = converted.get_submodule(f"features.1.0.{LAST}").weight
    assert torch.equal(after[:2], before[:2])
    assert not torch.equal(after[2:], before[2:])
    assert torch.isfinite(after).all()


class Plain(nn.Module):
    """One block, whose way to the addition is given."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.stem = nn.Conv2d(3, 8, 1)
        self.way = way
        self.scale = nn.Parameter(torch.arange(1.0, 9.0))
        self.places = nn.Parameter(torch.rand(1, 8, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.way(self, self.linear(x.permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("way", "factor"),
    [
        (lambda m, x: x.permute(0, 3, 1, 2), torch.ones(8)),
        (lambda m, x: (m.scale * x * 0.5).permute(0, 3, 1, 2), 0.5 * torch.arange(1.0, 9.0)),
        (lambda m, x: x.transpose(3, 1).transpose(-1, -2) * m.scale.view(8, 1, 1), torch.arange(1.0, 9.0)),
        (lambda m, x: x.permute(0, 3, 1, 2) * m.places, None),
    ],
    ids=["moved", "scaled, then moved", "moved, then scaled", "scaled by place"],
)
def test_the_way_to_an_addition(way: Callable[[nn.Module, Tensor], Tensor], factor: Tensor | None) -> None:
    network = Plain(way).eval()
    found, _ = way_of(network, "linear")
    told = found.factor(lambda node: value_of(network, node), 8, 4, 3)
    if factor is None:
        assert told is None
        return
    assert told is not None
    torch.testing.assert_close(told.float(), factor)
    x = torch.randn(2, SIDE, SIDE, 8)
    torch.testing.assert_close(found.moved_back(way(network, x)) / factor, x)


def value_of(network: nn.Module, node: fx.Node) -> Tensor:
    if node.op == "get_attr":
        return network.get_parameter(str(node.target))
    source = value_of(network, node.all_input_nodes[0])
    return getattr(source, str(node.target))(*node.args[1:])


@pytest.mark.parametrize(
    "way",
    [lambda m, x: (x * x).permute(0, 3, 1, 2), lambda m, x: torch.relu(x).permute(0, 3, 1, 2), lambda m, x: x.permute(3, 0, 1, 2).mean()],
    ids=["by itself", "an activation", "a sum"],
)
def test_what_cannot_be_undone_closes_nothing(way: Callable[[nn.Module, Tensor], Tensor]) -> None:
    region = survey(Plain(way).eval(), (3, SIDE, SIDE)).regions[0]
    node = next(node for node in region.nodes if node.target == "linear")
    assert closing(tuple(region.nodes), node) is None
