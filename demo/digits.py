"""A small residual network with bottlenecks for 8x8 pictures of handwritten digits, and the digits themselves.

The network is an ordinary PyTorch module of its own, as a user's would be: chansurg learns of it through ``--arch demo.digits:network``.
The digits are scikit-learn's copy of a part of the UCI optical recognition data set: 1797 scanned handwritten digits.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

SEED = 0
HELD_OUT = 500


class Bottleneck(nn.Module):
    """1x1 conv that squeezes, 3x3 conv, 1x1 conv that expands by 4, and a shortcut: ``[B, C, H, W] -> [B, 4 w, H / s, W / s]``."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """The block's branch, added to its shortcut."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + self.shortcut(x))


class DigitsResNet(nn.Module):
    """``[B, 3, 8, 8] -> [B, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Bottleneck(32, 16, 1), Bottleneck(64, 16, 1), Bottleneck(64, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(64, 32, 2), Bottleneck(128, 32, 1), Bottleneck(128, 32, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ten scores, one for each digit."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.pool(x), 1))


def network() -> nn.Module:
    """The network, freshly initialised; this is what ``--arch demo.digits:network`` names."""
    return DigitsResNet()


def digits() -> dict[str, tuple[Tensor, Tensor]]:
    """``train`` (1297) and ``val`` (500): grey pixels ``[N, 8, 8]`` uint8 and labels ``[N]``, always split the same way."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    grey = (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype("uint8")
    split = train_test_split(grey, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels)
    train_pixels, val_pixels, train_labels, val_labels = (torch.from_numpy(part) for part in split)
    return {"train": (train_pixels, train_labels), "val": (val_pixels, val_labels)}


def write_image_folder(folder: Path) -> None:
    """The digits as ``folder/{train,val}/{0..9}/NNNN.png``."""
    from PIL import Image

    for split, (pixels, labels) in digits().items():
        for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
            target = folder / split / str(int(label))
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.numpy()).save(target / f"{index:04}.png")
