"""The CIFAR-10 ResNets of the ResNet paper, which neither torchvision nor timm has.

He et al., "Deep Residual Learning for Image Recognition", section 4.2: a 3x3 stem of 16 channels, then three stages of ``n`` basic
blocks with 16, 32 and 64 channels on maps of 32, 16 and 8 pixels, a global average and one linear layer: ``6 n + 2`` layers in all.
State-dict keys are those of the checkpoints that people publish (``conv1``, ``bn1``, ``layer1.0.conv1`` …, ``linear``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = {20: 3, 32: 5, 44: 7, 56: 9, 110: 18, 1202: 200}
"""Layers of the network -> blocks of each stage."""


class SubsampleAndPad(nn.Module):
    """The parameter-free shortcut (option A): every second pixel, and channels of zeros on both sides.

    ``[B, C, H, W]`` to ``[B, C + 2 * padding, ceil(H / 2), ceil(W / 2)]``.
    """

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Half the pixels of ``x``, between channels of zeros."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))

    def extra_repr(self) -> str:
        """The padding on each side, in channels."""
        return f"padding={self.padding}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``[B, C_in, H, W]`` to ``[B, C_out, H / stride, W / stride]``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = SubsampleAndPad((out_channels - in_channels) // 2)
            if projection:
                conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
                self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, rectified."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """``[B, 3, 32, 32]`` to ``[B, num_classes]``; any other size from 4 pixels up works too.

    Args:
        depth: 20, 32, 44, 56, 110 or 1202 layers.
        projection: 1x1 convolutions on the two widening shortcuts (option B) instead of zeros (option A).
        num_classes: outputs.
    """

    def __init__(self, depth: int, *, projection: bool = False, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, BLOCKS[depth], stride=1, projection=projection)
        self.layer2 = self._stage(16, 32, BLOCKS[depth], stride=2, projection=projection)
        self.layer3 = self._stage(32, 64, BLOCKS[depth], stride=2, projection=projection)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, *, stride: int, projection: bool) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, projection=projection)
        others = (BasicBlock(channels, channels, 1, projection=projection) for _ in range(blocks - 1))
        return nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


NAMES = tuple(f"resnet{depth}{kind}" for depth in BLOCKS for kind in ("", "-b"))
"""Every name that follows ``cifar/``; ``-b`` means projection shortcuts."""


def build_cifar(name: str, num_classes: int = 10) -> CifarResNet:
    """The network called ``cifar/<name>``.

    Raises:
        KeyError: the name is not one of :data:`NAMES`.
    """
    if name not in NAMES:
        raise KeyError(name)
    depth = int(name.removeprefix("resnet").removesuffix("-b"))
    return CifarResNet(depth, projection=name.endswith("-b"), num_classes=num_classes)
