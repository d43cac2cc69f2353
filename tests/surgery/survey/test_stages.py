"""Stages: runs of like blocks, with the first block that has no addition, and those of networks without residual blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from chansurg.surgery.survey import survey
from chansurg.surgery.survey.blocks import Stage
from chansurg.surgery.survey.kinds import path_of


def stages(network: nn.Module, size: int = 64) -> list[Stage]:
    found = survey(network, (3, size, size))
    return [stage for region in found.regions for stage in found.stages(region)]


@pytest.mark.parametrize(
    ("name", "channels", "depths", "openings"),
    [
        ("resnet18", [64, 128, 256, 512], [2, 2, 2, 2], []),
        ("mobilenet_v2", [24, 32, 64, 96, 160], [2, 3, 4, 3, 3], [2, 4, 7, 11, 14]),
        ("mobilenet_v3_small", [24, 40, 48, 96], [2, 3, 2, 3], [2, 4, 7, 9]),
        ("efficientnet_b0", [24, 40, 80, 112, 192], [2, 2, 3, 3, 4], ["2.0", "3.0", "4.0", "5.0", "6.0"]),
        ("convnext_tiny", [96, 192, 384, 768], [3, 3, 9, 3], []),
        ("vgg11_bn", [256, 512, 512], [2, 2, 2], []),
        ("squeezenet1_1", [], [], []),
    ],
)
def test_of_known_networks(name: str, channels: list[int], depths: list[int], openings: list[object]) -> None:
    with torch.device("meta"):
        network = get_model(name, weights=None)
    found = stages(network)
    assert [stage.shape[0] for stage in found] == channels
    assert [stage.depth for stage in found] == depths
    assert [f"features.{opening}" for opening in openings] == [
        path_of(stage.opening[0]).partition(".conv" if name == "mobilenet_v2" else ".block")[0] for stage in found if stage.opening
    ]
    for stage in found:
        assert [number for number, _ in stage.numbered] == list(range(1 + bool(stage.opening), stage.depth + 1))


class Basic(nn.Module):
    """Two 3x3 convolutions, added to their input where that fits."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1)
        )
        self.adds = inputs == channels and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out + x if self.adds else out


def test_an_opening_is_told_by_its_layers_and_the_stem_is_none() -> None:
    stem = nn.Conv2d(3, 8, 3, 1, 1)
    opened = nn.Sequential(stem, Basic(8, 16, 2), Basic(16, 16), Basic(16, 32), Basic(32, 32), Basic(32, 32))
    assert [(stage.depth, len(stage.opening)) for stage in stages(opened)] == [(2, 2), (3, 2)]
    deep_stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(), Basic(16, 16))
    assert [(stage.depth, len(stage.opening)) for stage in stages(deep_stem)] == [(1, 0)]
    pooled = nn.Sequential(stem, Basic(8, 16), nn.MaxPool2d(2), Basic(16, 16))
    assert [(stage.depth, len(stage.opening)) for stage in stages(pooled)] == [(1, 0)]
    other_layers = nn.Sequential(stem, nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, 1, 1), Basic(16, 16))
    assert [(stage.depth, len(stage.opening)) for stage in stages(other_layers)] == [(1, 0)]


def conv(inputs: int, outputs: int, size: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, 1, size // 2, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU())


def test_plain_stages_are_runs_of_like_convolutions() -> None:
    chain = nn.Sequential(
        conv(3, 8), conv(8, 8), nn.Dropout(), conv(8, 8), nn.MaxPool2d(2), conv(8, 8), conv(8, 8, 5), conv(8, 8, 5), conv(8, 4, 5)
    )
    (first, second) = stages(chain)
    assert [block.path for block in first.blocks] == ["0.0", "1.0", "3.0"]
    assert [block.path for block in second.blocks] == ["6.0", "7.0"]
    assert {block.kind for block in (*first.blocks, *second.blocks)} == {"plain"}
    assert [path_of(node) for node in second.blocks[1].branch] == ["7.0", "7.1", "7.2"]
    separable = nn.Sequential(conv(3, 8), *(nn.Sequential(conv(8, 8, 3, 8), nn.Identity(), conv(8, 8, 1)) for _ in range(3)))
    assert [[block.path for block in stage.blocks] for stage in stages(separable)] == [["1.0.0", "2.0.0", "3.0.0"]]
    assert [path_of(node) for node in stages(separable)[0].blocks[0].branch if "Identity" not in type(node.meta["module"]).__name__] == [
        f"1.{i}.{j}" for i in (0, 2) for j in range(3)
    ]


def test_a_network_with_residual_blocks_has_no_plain_stages() -> None:
    network = nn.Sequential(conv(3, 16), conv(16, 16), conv(16, 16), nn.MaxPool2d(2), Basic(16, 16), Basic(16, 16))
    assert [block.path for stage in stages(network) for block in stage.blocks] == ["4", "5"]
