"""MoD written out in float64 loops, straight from Sections 3.1 to 3.3 of the paper. Slow on purpose; shares nothing with the layers."""

from __future__ import annotations

import math

import numpy as np


def scores(x: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``s`` [B, C] of ``x`` [B, C, ...] with the two weights [h, C] and [C, h]."""
    found = np.empty(x.shape[:2])
    for b in range(x.shape[0]):
        pooled = [x[b, c].sum() / x[b, c].size for c in range(x.shape[1])]
        hidden = [max(0.0, sum(row[c] * pooled[c] for c in range(len(pooled)))) for row in first]
        for c, row in enumerate(second):
            found[b, c] = 1 / (1 + math.exp(-sum(row[i] * hidden[i] for i in range(len(hidden)))))
    return found


def largest(s: np.ndarray, k: int) -> list[list[int]]:
    """The ``k`` channels of each image with the largest scores, largest first, the lowest of equals first."""
    picked: list[list[int]] = []
    for row in s:
        left = list(range(len(row)))
        picked.append([])
        for _ in range(k):
            best = left[0]
            for c in left:
                if row[c] > row[best]:
                    best = c
            picked[-1].append(best)
            left.remove(best)
    return picked


def block(x: np.ndarray, s: np.ndarray, picked: list[list[int]], process: object, fuse: str) -> np.ndarray:
    """The whole MoD block: ``process`` maps one image's selected channels [k, ...] to as many."""
    out = x.copy()
    channels = x.shape[1]
    for b, chosen in enumerate(picked):
        processed = process(np.stack([x[b, c] for c in chosen]))  # type: ignore[operator]
        for j, c in enumerate(chosen):
            at = {"first": j, "last": channels - len(chosen) + j, "original": c}[fuse]
            out[b, at] = out[b, at] + s[b, c] * processed[j]
    return out
