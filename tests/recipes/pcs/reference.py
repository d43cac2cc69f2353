"""PCS written down from the paper's equations, one number at a time, in Python's own floating point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor


def hard_sigmoid(z: float) -> float:
    """Of MobileNetV3, which Section IV names: ``relu6(z + 3) / 6``."""
    return min(max(z + 3, 0.0), 6.0) / 6


def linear(weight: Tensor, bias: Tensor, x: Sequence[float]) -> list[float]:
    return [sum(w * value for w, value in zip(row, x, strict=True)) + b for row, b in zip(weight.tolist(), bias.tolist(), strict=True)]


def pooled(image: Tensor, channel_dim: int) -> list[float]:
    """Global average pooling of one image, ``[C, …]`` or ``[…, C]``."""
    channels = image.movedim(0 if channel_dim == 1 else -1, 0)
    return [sum(values := channel.flatten().tolist()) / len(values) for channel in channels]


def salience(gate: Any, source: Tensor) -> list[list[float]]:
    """Figure 2: GAP, FC, ReLU, FC, hard sigmoid; ``[B][entries]``."""
    found = []
    for image in source:
        hidden = [max(value, 0.0) for value in linear(gate.fc1.weight, gate.fc1.bias, pooled(image, gate.channel_dim))]
        found.append([hard_sigmoid(z) for z in linear(gate.fc2.weight, gate.fc2.bias, hidden)])
    return found


def moved(running: Sequence[float], batch: Sequence[Sequence[float]], alpha: float) -> list[float]:
    """Equation 6, with the mean over a step's images for ``s``."""
    means = [sum(column) / len(batch) for column in zip(*batch, strict=True)]
    return [(1 - alpha) * old + alpha * mean for old, mean in zip(running, means, strict=True)]


def shrinking_loss(batch: Sequence[Sequence[float]], keys: Sequence[Sequence[float]], importance: Sequence[float], k: int) -> float:
    """Equation 3: the ``k`` first of ``s``, sorted by ``keys`` (one list an image), summed over the batch as if it held 256 images."""
    total = 0.0
    for saliences, by in zip(batch, keys, strict=True):
        order = sorted(range(len(saliences)), key=lambda i: (by[i], importance[i], i))
        assert all(by[a] <= by[b] for a, b in pairwise(order))
        total += sum(saliences[i] for i in order[:k])
    return total * 256 / len(batch)


def rate(base: float, done: float, of: float) -> float:
    """Section IV: ``lambda(T) = lambda_base (T / T_max)^2``."""
    return base * (done / of) ** 2
