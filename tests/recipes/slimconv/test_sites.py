"""Where SlimConv goes in the families of the paper and beyond: exact sites, the reasons for the others, and odd networks."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from networks import odd
from networks.small import small
from torch import Tensor, nn
from torch.nn import functional

import chansurg
from chansurg.recipes.slimconv import RECIPE
from chansurg.recipes.slimconv.sites import slim_sites
from chansurg.surgery.reading.builders import build, parse_architecture
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import path_of


@cache
def surveyed(name: str) -> Survey:
    """A library's network on the meta device; sites do not depend on the input size."""
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    return survey(build(parse_architecture(name)), (3, 96, 96))


def numberless(text: str) -> str:
    return re.sub(r"\d+", "N", text)


SITES = {
    "torchvision/resnet18": {("convolution", "layerN.N.convN"): 8},
    "torchvision/wide_resnet50_2": {("convolution", "layerN.N.convN"): 16},
    "torchvision/resnext50_32x4d": {("grouped", "layerN.N.convN"): 16},
    "torchvision/mobilenet_v2": {("depthwise", "features.N.conv.N.N"): 17},
    "torchvision/mobilenet_v3_small": {("depthwise", "features.N.block.N.N"): 11},
    "torchvision/efficientnet_b0": {("depthwise", "features.N.N.block.N.N"): 16},
    "torchvision/mnasnet0_5": {("depthwise", "layers.N"): 1, ("depthwise", "layers.N.N.layers.N"): 16},
    "torchvision/shufflenet_v2_x1_0": {("depthwise", "stageN.N.branchN.N"): 19},
    "torchvision/convnext_tiny": {("depthwise", "features.N.N.block.N"): 18},
    "torchvision/vgg11_bn": {("convolution", "features.N"): 6},
    "torchvision/googlenet": {("convolution", "convN.conv"): 1},
    "timm/dla46_c": {("convolution", "levelN.treeN.convN"): 4, ("convolution", "levelN.treeN.treeN.convN"): 8},
    "timm/seresnet50": {("convolution", "layerN.N.convN"): 16},
    "timm/resnet26d": {("convolution", "layerN.N.convN"): 8},
    "torchvision/squeezenet1_0": {},
    "torchvision/densenet121": {},
}


@pytest.mark.parametrize("name", SITES)
def test_sites_of_a_family(name: str) -> None:
    sites, skipped = slim_sites(surveyed(name))
    described = [site.describe() for site in sites]
    assert Counter((site.kind, numberless(site.path)) for site in described) == SITES[name]
    spatial = [path for path, m in surveyed(name).network.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    assert sorted({site.path for site in described} | {skip.path for skip in skipped}) == sorted(spatial)


REASONS = {
    "torchvision/resnet18": {"it is the stem", "its output is added to that of other layers"},
    "torchvision/googlenet": {"it is the stem", "its output cannot shrink: its channels go through cat at inceptionN"},
    "torchvision/densenet121": {"it is the stem", "its output cannot shrink: its channels go through cat at features.denseblockN"},
    "torchvision/vgg11_bn": {"it is the stem", "its output cannot shrink: its channels go through flatten at "},
    "torchvision/convnext_tiny": {"it is the stem", "its output cannot shrink: it is combined with the parameter features.N.N.layer_scale"},
    "timm/resnet26d": {"it is the stem"},
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons_of_a_family(name: str) -> None:
    said = {numberless(skip.reason) for skip in slim_sites(surveyed(name))[1]}
    assert all(any(reason.startswith(start) for start in REASONS[name]) for reason in said), said
    assert all(any(reason.startswith(start) for reason in said) for start in REASONS[name])


def test_the_stem_is_what_comes_before_the_first_block_of_a_residual_network_and_one_convolution_elsewhere() -> None:
    stems = {
        name: [skip.path for skip in slim_sites(surveyed(name))[1] if skip.reason == "it is the stem"]
        for name in ("timm/resnet26d", "timm/dla46_c", "torchvision/vgg11_bn", "torchvision/mobilenet_v2")
    }
    assert stems == {
        "timm/resnet26d": ["conv1.0", "conv1.3", "conv1.6"],
        "timm/dla46_c": ["base_layer.0", "level0.0", "level1.0"],
        "torchvision/vgg11_bn": ["features.0"],
        "torchvision/mobilenet_v2": ["features.0.0"],
    }


def test_a_network_without_a_site_has_a_reason_for_every_layer() -> None:
    found = surveyed("torchvision/squeezenet1_0")
    plan = RECIPE.plan(found, RECIPE.options({}))
    assert plan.sites == ()
    assert {skip.path for skip in plan.skipped} == {path for path, m in found.network.named_modules() if isinstance(m, nn.Conv2d)}


def test_a_second_conversion_says_that_the_slim_convolutions_are_there() -> None:
    network = chansurg.convert(small(), "slimconv", input_size=(3, 16, 16))
    with pytest.raises(chansurg.Refusal, match="a slim convolution is here already") as refused:
        chansurg.plan(network, "slimconv", input_size=(3, 16, 16))
    there = next(line for line in refused.value.what.splitlines() if "a slim convolution is here already" in line)
    slim = [path for path, module in network.named_modules() if type(module).__name__ == "SlimConv"]
    assert len(slim) == 3
    assert all(path in there for path in slim), there


class Around(nn.Module):
    """A stem, ``spatial`` from 16 to 16 channels, and what becomes of it."""

    def __init__(self, spatial: nn.Module, behind: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.spatial = spatial
        self.behind = behind
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.behind(self.spatial(torch.relu(self.stem(x)))))


class Splitting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([b, a], 1)


class Gated(nn.Module):
    """Squeeze-and-excitation around ``x``, with what the gate puts out added to as well."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(functional.relu(self.fc1(functional.adaptive_avg_pool2d(x, 1))))
        return x * torch.sigmoid(gate) + x * gate


class TwoBranches(nn.Module):
    """Adds what two convolutions make of ``x``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


class Same(nn.Conv2d):
    """A convolution of somebody's own."""


def spatial(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(16, 16, 3, padding=1, **options)


@pytest.mark.parametrize(
    ("conv", "behind", "reason"),
    [
        (spatial(), nn.ReLU(), None),
        (spatial(groups=4), nn.Hardswish(), None),
        (spatial(groups=16), nn.Sequential(nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.Dropout()), None),
        (spatial(), Gated(), None),
        (spatial(padding_mode="reflect"), spatial(groups=16), None),
        (spatial(), nn.GroupNorm(4, 16), "its output cannot shrink: behind normalises over groups of channels"),
        (spatial(), nn.InstanceNorm2d(16), "behind, which takes its output, cannot become narrower: InstanceNorm2d has no rule"),
        (spatial(), Splitting(), "its output cannot shrink: its channels go through chunk at behind"),
        (spatial(), nn.PReLU(), None),
        (spatial(), nn.PReLU(16), "its output cannot shrink: its channels go through PReLU at behind"),
        (spatial(), nn.PixelShuffle(1), "its output cannot shrink: its channels go through PixelShuffle"),
        (spatial(), nn.ConvTranspose2d(16, 16, 3), "its output cannot shrink: its channels go through ConvTranspose2d"),
        (nn.utils.parametrizations.weight_norm(spatial()), nn.ReLU(), "its weight is computed from other"),
        (Same(16, 16, 3, padding=1), nn.ReLU(), "it is a Same, and a slim convolution stands in for a plain Conv2d"),
    ],
)
def test_what_is_behind_a_convolution_decides(conv: nn.Module, behind: nn.Module, reason: str | None) -> None:
    network = Around(conv, behind)
    sites, skipped = slim_sites(survey(network, (3, 12, 12)))
    if reason is None:
        assert "spatial" in [path_of(site.layer) for site in sites]
        new = chansurg.convert(network, "slimconv", input_size=(3, 12, 12))
        assert new(torch.randn(2, 3, 12, 12)).shape[1] == 4
    else:
        said = {skip.path: skip.reason for skip in skipped}
        assert any(why.startswith(reason) for why in said.values()), said
        assert "spatial" not in [path_of(site.layer) for site in sites]


def test_branches_that_are_added_up_are_left_alone() -> None:
    sites, skipped = slim_sites(survey(Around(TwoBranches(), nn.ReLU()), (3, 12, 12)))
    assert sites == []
    assert {skip.path: skip.reason for skip in skipped if skip.path != "stem"} == {
        "spatial.first": "its output is added to that of other layers (a shortcut, or another branch)",
        "spatial.second": "its output is added to that of other layers (a shortcut, or another branch)",
    }


ODD = {
    "Bottleneck": "odd.conv2",
    "BlockCalledTwice": None,
    "CalledTwice": "odd.conv2",
    "Checkpointed": "odd.block.conv2",
    "ComputedWeight": "odd.conv2",
    "FillsItsArgument": "odd.block.conv2",
    "FunctionalConv": None,
    "FunctionalDropout": "odd.conv2",
    "InPlace": "odd.conv2",
    "KeepsItsInput": "odd.conv2",
    "Keywords": "odd.block.conv2",
    "NestedSequentials": "odd.parts.1.0",
    "SharedSqueeze": "odd.conv2",
    "SizeArithmetic": "odd.block.conv2",
    "TakesAList": "odd.block.conv2",
    "WeightReadElsewhere": "odd.conv2",
}
"""Odd networks, and the spatial convolution of their odd part that is replaced; their plain part's always is."""


@pytest.mark.parametrize("name", ODD)
def test_an_odd_network_is_converted_where_its_oddness_allows(name: str) -> None:
    torch.manual_seed(0)
    network = odd.Odd(getattr(odd, name)())
    new = chansurg.convert(network, "slimconv", input_size=(3, 16, 16))
    replaced = [edit.path for edit in chansurg.record_of(new).journal[-1].edits if edit.op == "swap"]
    assert replaced == [path for path in (ODD[name], "plain.conv2") if path is not None]
    for training in (False, True):
        assert new.train(training)(torch.randn(2, 3, 16, 16)).isfinite().all()
