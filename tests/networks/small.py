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


def vision_transformer() -> nn.Module:
    """A ViT of two blocks for 32x32 images."""
    return torchvision.models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, dropout=0.1, num_classes=5)


def swin() -> nn.Module:
    """A Swin of four blocks for 32x32 images, with stochastic depth; its index of relative positions is in no state dict."""
    return torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=[2, 2], stochastic_depth_prob=0.5, num_classes=5
    )


def convnext() -> nn.Module:
    """A ConvNeXt of two stages, with stochastic depth."""
    from torchvision.models.convnext import CNBlockConfig

    return torchvision.models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)], stochastic_depth_prob=0.5, num_classes=5)


def beit() -> nn.Module:
    """A BEiT of two blocks for 32x32 images; its index of relative positions is in no state dict."""
    from timm.models.beit import Beit

    return Beit(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, use_rel_pos_bias=True, num_classes=5)


def levit() -> nn.Module:
    """A LeViT of two stages for 64x64 images; its attention's index is in no state dict."""
    from timm.models.levit import Levit

    return Levit(img_size=64, embed_dim=(32, 64), key_dim=8, depth=(1, 1), num_heads=(2, 4), num_classes=5)
