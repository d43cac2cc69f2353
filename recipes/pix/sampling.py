"""The whole PiX layer as one operator: means, probabilities, pick or mix. Three passes that three operators would each have to start.

``chansurg::sample_channels`` is for inference on CPU, where the parts of the layer take less time than starting them: an image's means,
one matrix and vector product, and the fusion of the subsets run on the same threads, on numbers that are still in their caches. Its
definition is :func:`probability` followed by :func:`chansurg.recipes.pix.fusing.fused`; its gradients go through
``chansurg::pick_or_mix``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from chansurg.recipes.pix.fusing import CHOICE, PICK_OR_MIX, extents, fused, numbers, rounded
from chansurg.surgery.kernels.compiled import address
from chansurg.surgery.kernels.layouts import channels_innermost, empty, packed, parts_of_means
from chansurg.surgery.kernels.operators import Operator, in_front
from chansurg.surgery.pooling import mean_over


def probability(x: Tensor, theta: Tensor, beta: Tensor, channel_dim: int = 1, *, nonnegative: bool = False) -> Tensor:
    """The sampling probabilities of the subsets (Pick-or-Mix, Equation 1 and Section 3.2).

    Args:
        x: the channels, ``[B, C, …]``, or ``[B, …, C]`` with a ``channel_dim`` of -1.
        theta: ``[K, C]``.
        beta: ``[K]``.
        channel_dim: along which dimension the channels of ``x`` lie.
        nonnegative: there is no negative number in ``x``, so that its absolute values are itself.

    Returns:
        ``[B, K]``.
    """
    others = [dim for dim in range(1, x.ndim) if dim != channel_dim % x.ndim]
    g = mean_over(x if nonnegative else x.abs(), others)
    return torch.sigmoid(functional.linear(g, theta, beta))


class SampleChannelsOperator(Operator):
    """``chansurg::sample_channels``: ``x``, ``theta`` and ``beta`` of :func:`probability`, the rest of :func:`fused`. On CPU alone."""

    name = "sample_channels"
    arguments = f"Tensor x, Tensor theta, Tensor beta, {CHOICE}, bool nonnegative"
    differentiable = 3
    source = PICK_OR_MIX.source

    def plain(self, *arguments: Any) -> Tensor:
        """See the class."""
        x, theta, beta, *subsets, nonnegative = arguments
        return fused(x, probability(x, theta, beta, nonnegative=nonnegative), *subsets)

    def empty(self, *arguments: Any) -> Tensor:
        """``[B, K, …]``."""
        x, theta, *_ = arguments
        return empty(x, theta.shape[0])

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        x, theta, beta, order, counts, sizes, strided, least, tau, nonnegative = arguments
        innermost = channels_innermost(x)
        x, theta, beta, y = packed(x, innermost=innermost), theta.contiguous(), beta.contiguous(), empty(x, theta.shape[0])
        batch, (outputs, channels) = len(x), theta.shape
        parts = parts_of_means(x, innermost=innermost)
        means, sums, p = (
            torch.empty(count, dtype=torch.float32) for count in (batch * channels, batch * parts * channels, batch * outputs)
        )
        self.compiled("sample", x)(
            address(x), address(theta), address(beta), address(order), address(y), address(means), address(sums), address(p),
            *extents(x, outputs), ctypes.c_int64(parts), *numbers(counts, sizes), ctypes.c_bool(strided), ctypes.c_bool(innermost),
            ctypes.c_bool(least), ctypes.c_bool(nonnegative), ctypes.c_float(rounded(tau, x.dtype)),
        )  # fmt: skip
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`."""
        return self.gradients(self._in_steps, gradient, arguments)

    def _in_steps(self, *arguments: Any) -> Tensor:
        x, theta, beta, *subsets, nonnegative = arguments
        return PICK_OR_MIX(x, probability(x, theta, beta, nonnegative=nonnegative), *subsets)

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """A batch of batches is a longer batch, as long as all calls have the same ``theta`` and ``beta``."""
        if dims[1] is None and dims[2] is None:
            (x,) = in_front(size, arguments[:1], dims[:1])
            return torch.unflatten(self(x.flatten(0, 1), *arguments[1:]), 0, (size, -1)), 0
        calls = zip(*in_front(size, arguments[:3], dims[:3]), strict=True)
        return torch.stack([self(*tensors, *arguments[3:]) for tensors in calls]), 0


SAMPLE_CHANNELS = SampleChannelsOperator()
