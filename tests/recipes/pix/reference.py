"""PiX written out in float64 loops, straight from Equations 1 to 3 of the paper. Slow on purpose; shares nothing with the layer."""

from __future__ import annotations

import math

import numpy as np


def subsets_of(in_channels: int, out_channels: int, zeta: int | None, subsets: str) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(out_channels)]
    for channel in range(in_channels):
        if subsets == "strided":
            members[channel % out_channels].append(channel)
        elif zeta is not None:
            members[channel // zeta].append(channel)
    if subsets == "contiguous" and zeta is None:
        start = 0
        for index in range(out_channels):
            size = math.ceil((in_channels - start) / (out_channels - index))
            members[index] = list(range(start, start + size))
            start += size
    return members


def pick_or_mix(
    x: np.ndarray, theta: np.ndarray, beta: np.ndarray, members: list[list[int]], tau: float, operator: str
) -> tuple[np.ndarray, np.ndarray]:
    """``x`` [B, C, ...] float64 -> ``y`` [B, K, ...] and ``p`` [B, K]."""
    batch, channels = x.shape[:2]
    y = np.empty((batch, len(members), *x.shape[2:]))
    p = np.empty((batch, len(members)))
    for b in range(batch):
        g = [np.abs(x[b, c]).sum() / x[b, c].size for c in range(channels)]
        for i, subset in enumerate(members):
            logit = beta[i] + sum(theta[i, c] * g[c] for c in range(channels))
            p[b, i] = 1 / (1 + math.exp(-logit))
            for pixel in np.ndindex(*x.shape[2:]):
                values = [x[(b, c, *pixel)] for c in subset]
                average = sum(values) / len(values)
                pick = min(values) if operator == "min" else max(values)
                below = {"pick": True, "mix": False}.get(operator, p[b, i] <= tau)
                y[(b, i, *pixel)] = p[b, i] * (pick if below else average)
    return y, p
