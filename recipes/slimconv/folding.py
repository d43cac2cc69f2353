"""SlimConv's folds, for all paths of a layer, as one operator.

``chansurg::fold_channels`` reads the map once, however many orders of the weights it is folded under; :func:`folded` is its definition in
torch's own operators (SlimConv, Section III-A, Equation 2).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chansurg.surgery.kernels.compiled import address
from chansurg.surgery.kernels.layouts import channels_innermost, empty, packed, positions
from chansurg.surgery.kernels.operators import Operator, in_front

_PARTS = 16
"""Runs of positions whose gradients are summed by themselves where channels lie innermost."""


def folded(x: Tensor, weights: Tensor, folds: int) -> Tensor:
    """``fold_m(w * x)`` for each order of the weights: ``[B, C, H, W]`` and ``[B, N, C]`` to ``[N, B, C / m, H, W]``."""
    return torch.stack([fold(w[:, :, None, None], x, folds) for w in weights.unbind(1)])


def fold(w: Tensor, x: Tensor, folds: int) -> Tensor:
    """``fold_m(w * x)``, run by run, so that ``w * x`` never exists at its full width: ``[B, C / m, H, W]`` for ``w`` ``[B, C, 1, 1]``."""
    size = x.shape[1] // folds
    runs = list(zip(torch.split(w, size, 1), torch.split(x, size, 1), strict=True))
    total: Tensor = runs[0][0] * runs[0][1]
    for weight, run in runs[1:]:
        total = torch.addcmul(total, weight, run)
    return total


class FoldChannels(Operator):
    """``chansurg::fold_channels``, with the arguments of :func:`folded`; at most three orders of the weights."""

    name = "fold_channels"
    arguments = "Tensor x, Tensor weights, int folds"
    differentiable = 2
    source = Path(__file__).with_suffix(".cpp")
    on_cuda = "chansurg.recipes.slimconv.folding_triton"

    def plain(self, *arguments: Any) -> Tensor:
        """See :func:`folded`."""
        return folded(*arguments)

    def empty(self, *arguments: Any) -> Tensor:
        """``[N, B, C / m, H, W]``."""
        x, weights, folds = arguments
        return empty(x, x.shape[1] // folds, leading=(weights.shape[1],))

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        x, weights, folds = arguments
        innermost = channels_innermost(x)
        x, y, weights = packed(x, innermost=innermost), self.empty(*arguments), weights.float().contiguous()
        if x.is_cuda:
            self.triton.forward(x, weights, folds, y)
        else:
            self.compiled("forward", x)(
                address(x), address(weights), address(y), *_extents(x, weights, folds), ctypes.c_bool(innermost)
            )  # fmt: skip
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`."""
        x, weights, folds = arguments
        innermost = channels_innermost(x)
        x, wide, for_x = packed(x, innermost=innermost), weights.float().contiguous(), empty(x, x.shape[1])
        gradient = torch.unflatten(packed(gradient.to(x.dtype).flatten(0, 1), innermost=innermost), 0, (weights.shape[1], -1))
        if x.is_cuda:
            return for_x, self.triton.backward(gradient, x, wide, folds, for_x).to(weights.dtype)
        parts = min(_PARTS, positions(x)) if innermost else 1
        for_weights = torch.empty(parts, *wide.shape, dtype=torch.float32)
        self.compiled("backward", x)(
            address(gradient), address(x), address(wide), address(for_x), address(for_weights), *_extents(x, weights, folds),
            ctypes.c_bool(innermost), ctypes.c_int64(parts),
        )  # fmt: skip
        return for_x, for_weights.sum(0).to(weights.dtype)

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """Every image has its own weights: a batch of batches is a longer batch."""
        x, weights = in_front(size, arguments[:2], dims[:2])
        return torch.unflatten(self(x.flatten(0, 1), weights.flatten(0, 1), arguments[2]), 1, (size, -1)), 1


def _extents(x: Tensor, weights: Tensor, folds: int) -> tuple[ctypes.c_int64, ...]:
    numbers = (x.shape[0], x.shape[1], x.shape[1] // folds, weights.shape[1], positions(x))
    return tuple(map(ctypes.c_int64, numbers))


FOLD_CHANNELS = FoldChannels()
