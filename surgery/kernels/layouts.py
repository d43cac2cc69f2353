"""How maps lie in memory, for kernels: positions innermost (``NCHW``) or channels innermost (``channels_last``), nothing in between."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def channels_innermost(x: Tensor) -> bool:
    """Whether the channels of ``[B, C, …]`` lie next to each other: so in ``channels_last``, and where there is one position."""
    return x.ndim == 2 or (x.ndim > 2 and x.stride(1) == 1 and (x.shape[1] > 1 or x.stride(-1) != 1))


def packed(x: Tensor, *, innermost: bool) -> Tensor:
    """The tensor with no gaps, and its channels innermost or not; itself where it is so."""
    if not innermost:
        return x.contiguous()
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def empty(x: Tensor, channels: int, *, leading: tuple[int, ...] = ()) -> Tensor:
    """An unwritten tensor ``[*leading, B, channels, …]`` that lies as ``x`` ``[B, C, …]`` does, in its precision."""
    rest = tuple(x.shape[2:])
    if channels_innermost(x):
        return torch.empty((*leading, x.shape[0], *rest, channels), dtype=x.dtype, device=x.device).movedim(-1, 1 + len(leading))
    return torch.empty((*leading, x.shape[0], channels, *rest), dtype=x.dtype, device=x.device)


def positions(x: Tensor) -> int:
    """How many positions a map ``[B, C, …]`` has."""
    return prod(x.shape[2:])


_MOST_PARTS = 16
_FEWEST_POSITIONS = 16


def parts_of_means(x: Tensor, *, innermost: bool) -> int:
    """In how many runs of positions the means of a map are taken; 0 where positions are innermost, and each channel is a run."""
    return max(1, min(_MOST_PARTS, positions(x) // _FEWEST_POSITIONS)) if innermost else 0
