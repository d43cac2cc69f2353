"""SlimConv's attention and its folds as one operator: means, two dense layers, the folds of all paths.

``chansurg::attend_channels`` is for inference on CPU, where the attention takes less time than starting its parts one after another. Its
definition is :func:`attention` followed by :func:`chansurg.recipes.slimconv.folding.folded`; its gradients go through
``chansurg::fold_channels``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from chansurg.recipes.slimconv.folding import FOLD_CHANNELS, folded
from chansurg.surgery.kernels.compiled import address
from chansurg.surgery.kernels.layouts import channels_innermost, empty, packed, parts_of_means, positions
from chansurg.surgery.kernels.operators import Operator, in_front
from chansurg.surgery.pooling import mean_over


def attention(x: Tensor, squeeze: Tensor, squeeze_bias: Tensor, excite: Tensor, excite_bias: Tensor) -> Tensor:
    """The weights of the channels (SlimConv, Equation 1), with the norm in ``squeeze``: ``[B, C, H, W] -> [B, C]``.

    Args:
        x: the map.
        squeeze: ``[hidden, C]``.
        squeeze_bias: ``[hidden]``.
        excite: ``[C, hidden]``.
        excite_bias: ``[C]``.
    """
    z = mean_over(x, (2, 3))
    return torch.sigmoid(functional.linear(functional.relu(functional.linear(z, squeeze, squeeze_bias)), excite, excite_bias))


class AttendChannels(Operator):
    """``chansurg::attend_channels``: the arguments of :func:`attention`, the orders of the weights ``[N, C]``, and ``m``. On CPU alone."""

    name = "attend_channels"
    arguments = "Tensor x, Tensor squeeze, Tensor squeeze_bias, Tensor excite, Tensor excite_bias, Tensor orders, int folds"
    differentiable = 5
    source = FOLD_CHANNELS.source

    def plain(self, *arguments: Any) -> Tensor:
        """See the class."""
        *attended, orders, folds = arguments
        return folded(attended[0], attention(*attended)[:, orders], folds)

    def empty(self, *arguments: Any) -> Tensor:
        """``[N, B, C / m, H, W]``."""
        x, *_, orders, folds = arguments
        return empty(x, x.shape[1] // folds, leading=(orders.shape[0],))

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        x, squeeze, squeeze_bias, excite, excite_bias, orders, folds = arguments
        innermost = channels_innermost(x)
        x, y = packed(x, innermost=innermost), self.empty(*arguments)
        tensors = [tensor.contiguous() for tensor in (squeeze, squeeze_bias, excite, excite_bias, orders)]
        batch, channels, hidden, paths = x.shape[0], x.shape[1], squeeze.shape[0], orders.shape[0]
        parts = parts_of_means(x, innermost=innermost)
        # Means, sums, what is hidden, the attention, and that in all orders.
        counts = [batch * count for count in (channels, parts * channels, hidden, channels, paths * channels)]
        between = [torch.empty(count, dtype=torch.float32) for count in counts]
        sizes = (batch, channels, channels // folds, paths, positions(x), hidden, parts)
        self.compiled("attend", x)(*map(address, (x, *tensors, y, *between)), *map(ctypes.c_int64, sizes), ctypes.c_bool(innermost))
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`."""
        return self.gradients(self._in_steps, gradient, arguments)

    def _in_steps(self, *arguments: Any) -> Tensor:
        *attended, orders, folds = arguments
        return FOLD_CHANNELS(attended[0], attention(*attended)[:, orders], folds)

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """A batch of batches is a longer batch, as long as all calls have the same attention."""
        if all(dim is None for dim in dims[1:]):
            (x,) = in_front(size, arguments[:1], dims[:1])
            return torch.unflatten(self(x.flatten(0, 1), *arguments[1:]), 1, (size, -1)), 1
        calls = zip(*in_front(size, arguments[:6], dims[:6]), strict=True)
        return torch.stack([self(*tensors, arguments[6]) for tensors in calls]), 0


ATTEND_CHANNELS = AttendChannels()
