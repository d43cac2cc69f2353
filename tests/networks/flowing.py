"""Networks in which channels meet what they can and cannot pass. All take ``[B, 3, H, W]``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Path(nn.Module):
    """A 3x3 convolution ``gated`` to 8 channels with what follows it, then ``path``, a function or module, then what reads it."""

    def __init__(self, path: Callable[[Tensor], Tensor], reader: nn.Module | None = None, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.gated = nn.Conv2d(6, 8, 3, padding=1)
        self.behind = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()) if behind is None else behind
        self.path = path if isinstance(path, nn.Module) else Function(path)
        self.reader = nn.Conv2d(8, 4, 1) if reader is None else reader

    def forward(self, x: Tensor) -> Tensor:
        x = self.behind(self.gated(torch.relu(self.stem(x))))
        result: Tensor = self.reader(self.path(x))
        return result


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SqueezeAndExcitation(nn.Module):
    """Scales channels by what two 1x1 convolutions make of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class LayerScale(nn.Module):
    """A parameter for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ChannelAttention(nn.Module):
    """Scales channels by a convolution over neighbouring channels (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.conv(x.mean((2, 3)).unsqueeze(1)))
        return x * weights.reshape(x.shape[0], 8, 1, 1)


class Overwriting(nn.Module):
    """Its input is changed in place after its first convolution has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(x)
        x.clamp_(0, 1)
        result: Tensor = self.last(torch.cat([torch.relu(y), x], 1))
        return result


class Pair(nn.Module):
    """A pointwise and a grouped convolution; ``reads``: somebody else wants the pointwise one's output too."""

    def __init__(self, groups: int, out: int, *, reads: bool = False, between: nn.Module | None = None) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12)
        self.between = nn.Hardswish() if between is None else between
        self.grouped, self.norm2 = nn.Conv2d(12, out, 3, padding=1, groups=groups), nn.BatchNorm2d(out)
        self.project = nn.Conv2d(out, 6, 1)
        self.other = nn.Conv2d(12, 6, 1) if reads else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.between(self.norm1(self.expand(x)))
        result: Tensor = x + self.project(functional.relu6(self.norm2(self.grouped(hidden))))
        return result if self.other is None else result + self.other(hidden)


class WithStem(nn.Module):
    """A stem of 6 channels ahead of a module, and a head."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(3, 6, 3, padding=1), inner, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.inner(torch.relu(self.stem(x))).mean((2, 3)))
        return result
