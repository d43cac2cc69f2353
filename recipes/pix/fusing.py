"""Pick or mix: of each subset of channels the extreme or the mean, scaled by the subset's sampling probability, as one operator.

``chansurg::pick_or_mix`` reads its input once; :func:`fused` is its definition in torch's own operators, which read it several times
(Pick-or-Mix, Section 3, Equations 2 and 3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chansurg.surgery.kernels.compiled import address
from chansurg.surgery.kernels.layouts import channels_innermost, empty, packed, positions
from chansurg.surgery.kernels.operators import Operator, in_front

_PARTS = 16
"""Runs of positions whose gradients are summed by themselves where channels lie innermost."""

CHOICE = "Tensor? order, int[] counts, int[] sizes, bool strided, bool least, float tau"
"""What :func:`fused` is told of subsets and of what to take of each, in an operator's schema."""


def fused(
    x: Tensor, p: Tensor, order: Tensor | None, counts: Sequence[int], sizes: Sequence[int], strided: bool, least: bool, tau: float
) -> Tensor:
    """``p`` times the extreme of each subset where ``p <= tau``, and times its mean elsewhere: ``[B, C, …] -> [B, K, …]``.

    Args:
        x: the channels.
        p: the sampling probabilities, ``[B, K]``, in the precision of ``x``.
        order: the channels as the subsets have them one after the other, int64 ``[C]``; ``None``: as they come.
        counts: at most two groups of subsets of one size: how many each has,
        sizes: and the channels in each of its subsets.
        strided: subset ``i`` has the channels ``i, i + K, i + 2K, …``; otherwise a run of neighbours in ``order``.
        least: the extreme is the minimum, not the maximum.
        tau: the threshold; infinite to pick always, minus infinity to mix always.
    """
    # Reductions return the default layout. With channels moved to where memory has them, that is the layout of x.
    innermost = x.ndim > 2 and x.stride(1) == 1
    channel = x.ndim - 1 if innermost else 1
    x = x.movedim(1, -1) if innermost else x
    x = x if order is None else x.index_select(channel, order)
    for dim in range(1, x.ndim):
        p = p if dim == channel else p.unsqueeze(dim)
    y = p * _chosen(_Subsets(x, channel, counts, sizes, strided), p, least, tau)
    return y.movedim(-1, 1) if innermost else y


def _chosen(subsets: _Subsets, p: Tensor, least: bool, tau: float) -> Tensor:
    if tau == -torch.inf:
        return subsets.means()
    picked = subsets.extremes(least)
    return picked if tau == torch.inf else torch.where(p <= tau, picked, subsets.means())


class _Subsets:
    """The subsets of channels along one dimension, reduced to one entry each, on views."""

    def __init__(self, x: Tensor, channel: int, counts: Sequence[int], sizes: Sequence[int], strided: bool) -> None:
        self._x, self._channel, self._counts, self._sizes, self._strided = x, channel, counts, sizes, strided

    def extremes(self, least: bool) -> Tensor:
        """Maxima, or minima."""
        return self._reduced(torch.amin if least else torch.amax)

    def means(self) -> Tensor:
        """Averages over the channels that a subset has."""
        return self._reduced(lambda x, dim: x.mean(dim))

    def _reduced(self, reduce: Callable[[Tensor, int], Tensor]) -> Tensor:
        x, channel, total = self._x, self._channel, sum(self._counts)
        if not self._strided:
            pieces = torch.split(x, [count * size for count, size in zip(self._counts, self._sizes, strict=True)], channel)
            shapes = zip(pieces, self._counts, self._sizes, strict=True)
            return _joined([reduce(torch.unflatten(piece, channel, (count, size)), channel + 1) for piece, count, size in shapes], channel)
        size = self._sizes[-1]
        even, rest = torch.split(x, [size * total, x.shape[channel] - size * total], channel)
        rows = torch.unflatten(even, channel, (size, total))
        if len(self._counts) == 1:
            return reduce(rows, channel)
        longer, shorter = torch.split(rows, list(self._counts), channel + 1)
        return _joined([reduce(torch.cat([longer, rest.unsqueeze(channel)], channel), channel), reduce(shorter, channel)], channel)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


class PickOrMixOperator(Operator):
    """``chansurg::pick_or_mix``, with the arguments of :func:`fused`."""

    name = "pick_or_mix"
    arguments = f"Tensor x, Tensor p, {CHOICE}"
    differentiable = 2
    source = Path(__file__).with_suffix(".cpp")
    on_cuda = "chansurg.recipes.pix.fusing_triton"

    def plain(self, *arguments: Any) -> Tensor:
        """See :func:`fused`."""
        return fused(*arguments)

    def empty(self, *arguments: Any) -> Tensor:
        """``[B, K, …]``."""
        x, p, *_ = arguments
        return empty(x, p.shape[1])

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        x, p, order, counts, sizes, strided, least, tau = arguments
        innermost = channels_innermost(x)
        x, y, limit = packed(x, innermost=innermost), empty(x, p.shape[1]), rounded(tau, x.dtype)
        if x.is_cuda:
            self.triton.forward(x, p, order, numbers(counts, sizes), strided, least, limit, y)
        else:
            p = p.float().contiguous()
            self.compiled("forward", x)(
                address(x), address(p), address(order), address(y), *extents(x, p.shape[1]), *numbers(counts, sizes),
                ctypes.c_bool(strided), ctypes.c_bool(innermost), ctypes.c_bool(least), ctypes.c_float(limit),
            )  # fmt: skip
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`."""
        x, p, order, counts, sizes, strided, least, tau = arguments
        innermost = channels_innermost(x)
        x, gradient, limit = packed(x, innermost=innermost), packed(gradient.to(x.dtype), innermost=innermost), rounded(tau, x.dtype)
        for_x = empty(x, x.shape[1])
        if x.is_cuda:
            for_p = self.triton.backward(gradient, x, p, order, numbers(counts, sizes), strided, least, limit, for_x)
            return for_x, for_p.to(p.dtype)
        wide = p.float().contiguous()
        parts = min(_PARTS, positions(x)) if innermost else 1
        for_p = torch.empty(parts, *p.shape, dtype=torch.float32)
        self.compiled("backward", x)(
            address(gradient), address(x), address(wide), address(order), address(for_x), address(for_p), *extents(x, p.shape[1]),
            *numbers(counts, sizes), ctypes.c_bool(strided), ctypes.c_bool(innermost), ctypes.c_bool(least), ctypes.c_float(limit),
            ctypes.c_int64(parts),
        )  # fmt: skip
        return for_x, for_p.sum(0).to(p.dtype)

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """Every image has its own ``p``: a batch of batches is a longer batch."""
        x, p = in_front(size, arguments[:2], dims[:2])
        return torch.unflatten(self(x.flatten(0, 1), p.flatten(0, 1), *arguments[2:]), 0, (size, -1)), 0


def extents(x: Tensor, outputs: int) -> tuple[ctypes.c_int64, ...]:
    """Images, channels, subsets and positions, as functions of the source take them."""
    return tuple(map(ctypes.c_int64, (x.shape[0], x.shape[1], outputs, positions(x))))


def numbers(counts: Sequence[int], sizes: Sequence[int]) -> tuple[ctypes.c_int64, ...]:
    """The groups of subsets, as functions of the source take them: how many the first has, and the channels in each of both."""
    return tuple(map(ctypes.c_int64, (counts[0], sizes[0], sizes[-1])))


@cache
def rounded(tau: float, dtype: torch.dtype) -> float:
    """The threshold as a comparison with a tensor of this precision has it."""
    return float(torch.tensor(tau, dtype=dtype))


PICK_OR_MIX = PickOrMixOperator()
