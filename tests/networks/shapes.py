"""Networks in which a squeeze, or what looks like one, meets shapes that it does not fit. All take ``[B, 3, H, W]``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class AroundASqueeze(nn.Module):
    """A stem, a 1x1 squeeze from 32 channels, something behind it, a 3x3; returns ``[B, C, H, W]``."""

    def __init__(self, squeeze: nn.Module, behind: nn.Module, spatial: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.squeeze = squeeze
        self.behind = behind
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.spatial(self.behind(self.squeeze(torch.relu(self.stem(x)))))
        return result


class Function(nn.Module):
    """Calls a function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "glu":
            return functional.glu(x, 1)
        if self.name == "normalize":
            return functional.normalize(x, dim=(1, 2, 3))
        return torch.norm(x, dim=1, keepdim=True)


class FeedForward(nn.Module):
    """``[…, 16] -> […, 16]`` by way of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(functional.gelu(self.fc1(x)))


class Tokens(nn.Module):
    """Feed-forward networks on the pixels of a map, which lie in memory as ``layout`` says."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.first, self.second = FeedForward(), FeedForward()
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)  # [B, 16, N]
        if self.layout == "sequence first":
            x = self.second(self.first(x.permute(2, 0, 1)))
            return x.mean(0)
        if self.layout == "folded":
            batch = x.shape[0]
            x = self.second(self.first(x.transpose(1, 2).reshape(-1, 16)))
            return x.reshape(batch, -1, 16).mean(1)
        return self.second(self.first(x.transpose(1, 2))).mean(1)


class OnlyOneImage(nn.Module):
    """Drops the batch, which works for a single image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.first = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).reshape(1, 16, 16).transpose(1, 2)
        result: Tensor = self.first(x)
        return result


class SpaceToDepth(nn.Module):
    """A stem behind a rearrangement of the image, and a basic block."""

    def __init__(self) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(4)
        self.stem = nn.Conv2d(48, 16, 3, padding=1)
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(self.unshuffle(x)))
        return x + self.conv2(torch.relu(self.conv1(x)))


class HidesLayers(nn.Module):
    """A block of torch's own that is taken as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.encoder(self.stem(x).flatten(2).transpose(1, 2))
        return result
