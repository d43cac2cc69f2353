"""A network with bottlenecks for CIFAR, which PiX's squeeze mode needs and no library has.

    chansurg finetune benchmarks.recovery.networks:bottleneck29 --data ../shared/data/cifar10.zip --epochs 40 --precision bf16 \
        -o bottleneck29-cifar10jpeg.safetensors

He et al., "Deep Residual Learning for Image Recognition", Figure 5, in the arrangement of their section 4.2: three stages of three blocks
whose spatial convolutions have 16, 32 and 64 channels, on maps of 32, 16 and 8 pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: ``[B, C_in, H, W]`` to ``[B, 4 width, H / stride, W / stride]``."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = _EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """What the block makes of ``x``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class BottleneckResNet(nn.Module):
    """``[B, 3, 32, 32]`` to ``[B, num_classes]``."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for number, width in enumerate((16, 32, 64), 1):
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(channels, width, 2 if number > 1 and block == 0 else 1))
                channels = _EXPANSION * width
            setattr(self, f"layer{number}", nn.Sequential(*stage))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def bottleneck29(num_classes: int = 10) -> nn.Module:
    """29 layers; as costly as ResNet-20."""
    return BottleneckResNet(3, num_classes)
