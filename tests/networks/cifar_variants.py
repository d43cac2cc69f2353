"""Networks for images of 32x32 and 100 classes, as the SlimConv paper's Tables V, VI and XI count them."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


def resnet50(**options: int) -> nn.Module:
    """A ResNet-50 that starts with a 3x3 convolution and no pooling; ``groups`` and ``width_per_group`` make it a ResNeXt."""
    network = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=100, **options)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def shufflenet_v2() -> nn.Module:
    """A ShuffleNetV2 1.0 whose first convolution does not stride, without pooling."""
    network = torchvision.models.shufflenet_v2_x1_0(num_classes=100)
    network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
    return network


class _InvertedResidual(nn.Module):
    """Expands even by a factor of one, and has a projection in the shortcut where the width changes and the resolution does not."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        projection = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.shortcut = nn.Sequential(*projection) if in_channels != out_channels else nn.Identity()
        self.has_shortcut = stride == 1
        if not self.has_shortcut:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x) if self.has_shortcut else y


def mobilenet_v2() -> nn.Module:
    """A MobileNetV2 with two strides fewer and projections in its shortcuts."""
    settings = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    width = 32
    for expansion, out_channels, blocks, stride in settings:
        for block in range(blocks):
            layers.append(_InvertedResidual(width, out_channels, expansion, stride if block == 0 else 1))
            width = out_channels
    head = [nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(1280, 100))
