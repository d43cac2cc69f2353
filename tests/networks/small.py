"""Small networks with what real ones have: bottlenecks and basic blocks, one ReLU for three places, dropout, a tied weight."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with one ReLU called three times: ``[B, C, H, W] -> [B, 4w, H, W]``."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if in_channels == 4 * width else nn.Conv2d(in_channels, 4 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class Basic(nn.Module):
    """Two 3x3 convolutions around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


class Small(nn.Module):
    """``[B, 3, H, W] -> [B, classes]``."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Bottleneck(2 * width, width), Bottleneck(4 * width, width), Basic(4 * width))
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


class Tied(Small):
    """The first bottleneck's and the basic block's last 3x3 convolution share one weight; so do two heads."""

    def __init__(self) -> None:
        super().__init__(5, 4)
        self.blocks[2].conv2.weight = self.blocks[2].conv1.weight
        self.second = nn.Linear(16, 5)
        self.second.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x))).mean((2, 3))
        return self.fc(x) + self.second(x)


def small() -> nn.Module:
    return Small(5, 8)


def tiny() -> nn.Module:
    return Small(3, 4)


def tied() -> nn.Module:
    return Tied()


def vgg16_with_global_pooling() -> nn.Module:
    """The VGG-16 of the PiX paper's Table 3: batch norm, global average pooling and one 512-1000 classifier."""
    network = torchvision.models.vgg16_bn(weights=None, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, 1000)
    return network
