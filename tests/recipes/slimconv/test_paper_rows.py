"""The networks of the SlimConv paper's tables, counted."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import cifar_variants
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

import chansurg
from chansurg.surgery.forwards.skeleton import meta_copy

SPEC = Path(__file__).parents[3].parent / "shared" / "spec" / "paper-tables.csv"

# row, network, options, resolution, parameters in millions, multiply-accumulates in billions (SlimConv, Tables I and III)
PAPER: list[tuple[str, str, dict[str, Any], int, float, float]] = [
    ("resnet50-slim", "resnet50", {"k": "4/3"}, 224, 16.759, 2.652),
    ("resnet50-slim83", "resnet50", {"k": "8/3"}, 224, 12.098, 1.880),
    ("resnet101-slim", "resnet101", {"k": "4/3"}, 224, 27.957, 4.822),
    ("resnext50-slim", "resnext50_32x4d", {"k": "4/3"}, 224, 22.493, 3.821),
    ("mobilenetv2-slim83", "mobilenet_v2", {"k": "8/3", "floor": 24}, 224, 3.382, 0.239),
]


def slimmed(network: nn.Module, side: int, **options: Any) -> nn.Module:
    return chansurg.convert(network, "slimconv", input_size=(3, side, side), **options)


@pytest.mark.parametrize(("row", "name", "options", "side", "params", "macs"), PAPER, ids=[row[0] for row in PAPER])
def test_the_papers_tables(row: str, name: str, options: dict[str, Any], side: int, params: float, macs: float) -> None:
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    converted = slimmed(network, side, **options)
    after = chansurg.record_of(converted).journal[-1].after
    assert after["params"] == pytest.approx(params * 1e6, rel=1e-3)
    assert after["macs"] == pytest.approx(macs * 1e9, rel=5e-3)


def test_the_copied_rows_are_those_of_the_specification() -> None:
    if not SPEC.exists():
        pytest.skip("the specification lies outside the repository and is not here")
    with SPEC.open() as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == "slimconv"]
    ours = {row: (name, " ".join(f"{k}={v}" for k, v in options.items()), *counts) for row, name, options, *counts in PAPER}
    assert {
        row["row"]: (row["base"], row["options"], int(row["resolution"]), float(row["params_M"]), float(row["macs_G"])) for row in rows
    } == ours


def timm_network(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name)


# Rows that the specification does not hold: network, options, resolution, parameters and operations in millions, as printed.
OTHERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int, float, float]] = {
    "Table III, Sc-ShuffleNetV2": (torchvision.models.shufflenet_v2_x1_0, {}, 224, 2.25, 142),
    "Table III, Sc-DLA-46-C": (lambda: timm_network("dla46_c"), {"floor": 24}, 224, 0.97, 483),
    "Table V, Sc-MobileNetV2": (cifar_variants.mobilenet_v2, {"k": "8/3"}, 32, 2.19, 74.80),
    "Table VI, Sc-ResNet-50": (cifar_variants.resnet50, {}, 32, 14.91, 836),
    "Table VI, Sc-ResNeXt-50": (lambda: cifar_variants.resnet50(groups=32, width_per_group=4), {}, 32, 20.64, 1221),
}


def operations(network: nn.Module, side: int) -> int:
    """Multiply-accumulates; at 32x32, as the paper's tables do there, with two for each element that a batch norm puts out."""
    journal = chansurg.record_of(network).journal
    counted = journal[-1].after["macs"] if journal else chansurg.count(network, (3, side, side)).macs
    if side == 32:
        elements: list[int] = []
        copied = meta_copy(network)
        for module in copied.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, args, output: elements.append(output.numel()))
        copied(torch.empty(1, 3, side, side, device="meta"))
        counted += 2 * sum(elements)
    return counted


@pytest.mark.parametrize("row", OTHERS)
def test_more_rows_of_the_papers_tables(row: str) -> None:
    """Parameters round to what is printed; operations agree to half a per cent."""
    build, options, side, params, millions = OTHERS[row]
    with torch.device("meta"):
        network = build()
    converted = slimmed(network, side, **options)
    assert round(sum(p.numel() for p in converted.parameters()) / 1e6, 2) == params
    assert operations(converted, side) == pytest.approx(millions * 1e6, rel=5e-3)


@pytest.mark.parametrize(
    ("build", "params", "millions"),
    [
        (cifar_variants.resnet50, 23.71, 1305),
        (cifar_variants.mobilenet_v2, 2.41, 94.72),
        (cifar_variants.shufflenet_v2, 1.36, 46.22),
    ],
)
def test_the_unconverted_networks_at_32x32_are_the_papers(build: Callable[[], nn.Module], params: float, millions: float) -> None:
    with torch.device("meta"):
        network = build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == params
    assert operations(network, 32) == pytest.approx(millions * 1e6, rel=5e-4)


def test_what_a_larger_k_and_a_third_path_come_to() -> None:
    """Section IV-D: k = 8/3 takes 56.77 per cent of a ResNet-50's parameters. Table XI, Sc-ResNet-50-3b-sf: 17.03 M."""
    with torch.device("meta"):
        network = cifar_variants.resnet50()
    before, with_k, with_path = (
        sum(p.numel() for p in model.parameters()) for model in (network, slimmed(network, 32, k="8/3"), slimmed(network, 32, paths=3))
    )
    assert round(100 * (1 - with_k / before), 2) == 56.77
    assert round(with_path / 1e6, 2) == 17.03


def test_half_the_groups_in_every_bottom_path_would_be_the_papers_resnext101() -> None:
    """Table I, Sc-ResNeXt-101 (32x3d, k = 2): 23.70 M and 4.58 G, with stages of 4, 8, 18 and 3 blocks.

    In the first stage the bottom path has 16 channels, which 32 groups do not divide. The paper's counts are those of 16 groups in every
    stage; here only the first stage has 16, and the others keep 32.
    """
    with torch.device("meta"):
        network = ResNet(Bottleneck, [4, 8, 18, 3], groups=32, width_per_group=3)
    converted = slimmed(network, 224, k="2")
    assert sum(p.numel() for p in converted.parameters()) == pytest.approx(23.70e6, rel=2e-3)
    for module in converted.modules():
        if hasattr(module, "bottom"):
            width = module.bottom.conv.in_channels
            assert module.bottom.conv.groups == min(width, 32)
            module.bottom.conv = nn.Conv2d(width, width, 3, module.bottom.conv.stride, 1, groups=16, bias=False, device="meta")
    counts = chansurg.count(converted, (3, 224, 224))
    assert round(counts.params / 1e6, 2) == 23.70
    assert round(counts.macs / 1e9, 2) == 4.58


def test_keeping_the_inner_width_where_a_stage_begins_would_be_the_papers_resnet56() -> None:
    """Table V, Sc-ResNet-56: 0.46 M and 67.28 M, from 0.86 M and 126.56 M.

    Those are the counts of slim convolutions that put out 3/4 of their input channels even where the convolution replaced doubled them.
    """

    network = meta_copy(chansurg.load("cifar/resnet56"))
    network.fc = nn.Linear(64, 100, device="meta")
    assert operations(network, 32) == pytest.approx(126.56e6, rel=5e-4)
    ours = slimmed(network, 32)
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(0.476e6, rel=5e-3)
    for name in ("layer2", "layer3"):
        block: Any = getattr(network, name)[0]
        width = block.conv1.in_channels
        block.conv1 = nn.Conv2d(width, width, 3, 2, 1, bias=False, device="meta")
        block.bn1 = nn.BatchNorm2d(width, device="meta")
        block.conv2 = nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False, device="meta")
    papers = slimmed(network, 32)
    assert round(sum(p.numel() for p in papers.parameters()) / 1e6, 2) == 0.46
    assert operations(papers, 32) == pytest.approx(67.28e6, rel=5e-3)


class Strided(nn.Conv2d):
    """No plain convolution, and so left alone."""


def test_the_paper_replaces_the_shuffle_units_without_a_stride_at_32x32() -> None:
    """Table V, Sc-ShuffleNetV2: 1.34 M and 44.58 M."""
    with torch.device("meta"):
        network = cifar_variants.shufflenet_v2()
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.stride != (1, 1):
            module.__class__ = Strided
    converted = slimmed(network, 32)
    assert round(sum(p.numel() for p in converted.parameters()) / 1e6, 2) == 1.34
    assert operations(converted, 32) == pytest.approx(44.58e6, rel=1e-3)
