"""Networks whose channels are moved about, split, shared and added: each for one thing that slicing has to see. ``[B, 3, H, W]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Base(nn.Module):
    """A stem of 8 channels, something in the middle, a head of 5 classes."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(channels, 5)

    def start(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.stem(x)))

    def end(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Flattened(Base):
    """Flattens a map of 8 channels into a linear layer."""

    def __init__(self) -> None:
        super().__init__(8 * 16 * 16)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.flatten(functional.max_pool2d(self.start(x), 2, ceil_mode=True), 1))


class FlattenedByConstant(Flattened):
    """Flattens with the number written in the code."""

    def forward(self, x: Tensor) -> Any:
        return self.head(functional.max_pool2d(self.start(x), 2).view(-1, 8 * 16 * 16))


class Concatenated(Base):
    """Concatenates two branches, padded and pooled."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.b = nn.Conv2d(8, 6, 3), nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        return self.end(torch.cat([functional.pad(torch.relu(self.a(x)), (1, 1, 1, 1)), torch.relu(self.b(x))], 1))


class Chunked(Base):
    """Cuts a tensor in two halves, which go different ways."""

    def __init__(self) -> None:
        super().__init__(4)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        first, second = self.start(x).chunk(2, 1)
        return self.end(torch.relu(self.a(first)) + torch.relu(self.b(second)))


class SplitByConstant(Chunked):
    """Cuts a tensor at a number written in the code."""

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        return self.end(torch.relu(self.a(x[:, :4])) + torch.relu(self.b(x[:, 4:])))


class Shuffled(Base):
    """Shuffles channels between two groups of a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.end(torch.relu(self.grouped(x)))


class Depthwise(Base):
    """Expands, filters channel by channel, and comes back."""

    def __init__(self, multiplier: int = 1) -> None:
        super().__init__()
        self.expand, self.expand_norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16 * multiplier, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16 * multiplier)
        self.project = nn.Conv2d(16 * multiplier, 8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        inside = functional.relu6(self.expand_norm(self.expand(x)))
        return self.end(torch.relu(x + self.project(torch.sigmoid(self.depthwise_norm(self.depthwise(inside))))))


class Multiplied(Depthwise):
    """The same with two outputs for each channel."""

    def __init__(self) -> None:
        super().__init__(2)


class SqueezedAndExcited(Base):
    """Weights its channels by what two layers make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        scale = torch.sigmoid(self.fc2(torch.relu(self.fc1(functional.adaptive_avg_pool2d(x, 1)))))
        return self.end(x * scale)


class WeightedInSpace(Base):
    """Weights positions by a map of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        return self.end(x * torch.sigmoid(self.map(x)))


class SharedLayer(Base):
    """One convolution called on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.end(torch.relu(self.shared(torch.relu(self.shared(self.start(x))))))


class ChangedInPlace(Base):
    """Adds to a tensor in place and reads it afterwards under its first name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        branch = torch.relu(self.conv(x))
        same = x
        same += 1.5
        return self.end(torch.relu(x) + branch)


class CountsItsChannels(Base):
    """Divides by the number of its channels."""

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        return self.end(x / x.shape[1] ** 0.5)


class Residual(Base):
    """A stage of two basic blocks; with ``in_place`` they add in place."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(8, in_place) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        for block in self.blocks:
            x = block(x)
        return self.end(x)


class InPlace(Residual):
    """The same, adding in place."""

    def __init__(self) -> None:
        super().__init__(in_place=True)


class Block(nn.Module):
    """Two convolutions around an identity."""

    def __init__(self, channels: int, in_place: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Any:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.in_place:
            out += x
        else:
            out = x + out
        return self.relu(out)


class FilledUp(Base):
    """A shortcut that strides and fills up with channels of zeros."""

    def __init__(self) -> None:
        super().__init__(16)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        return self.end(torch.relu(self.conv(x) + functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))))


class Tokens(Base):
    """Turns a map into tokens, and back; a feed-forward network on them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Any:
        x = self.start(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.fc2(functional.gelu(self.fc1(tokens)))
        return self.end(tokens.permute(0, 2, 1).reshape(batch, channels, height, width))


class Attention(Base):
    """Attends over positions, by heads whose number is written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        x = functional.avg_pool2d(self.start(x), 4)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(batch, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        tokens = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.end(tokens.transpose(1, 2).reshape(batch, channels, height, width))


EVERY = (
    Flattened,
    FlattenedByConstant,
    Concatenated,
    Chunked,
    SplitByConstant,
    Shuffled,
    Depthwise,
    Multiplied,
    SqueezedAndExcited,
    WeightedInSpace,
    SharedLayer,
    ChangedInPlace,
    CountsItsChannels,
    Residual,
    InPlace,
    FilledUp,
    Tokens,
    Attention,
)
