"""Channels taken from a map at places that each image may have of its own, and a branch added to some channels of a map, as operators."""

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

_SOURCE = Path(__file__).with_suffix(".cpp")
_ON_CUDA = "chansurg.surgery.kernels.moving_triton"


def taken(x: Tensor, index: Tensor) -> Tensor:
    """The channels ``index`` ``[B, k]`` of every image: ``[B, C, …] -> [B, k, …]``."""
    # What is gathered lies in memory as its index does. With channels moved to where memory has them, that is as x does.
    innermost = x.ndim > 2 and x.stride(1) == 1
    source = x.movedim(1, -1) if innermost else x
    found = source.gather(-1 if innermost else 1, _spread(index, source, innermost))
    return found.movedim(-1, 1) if innermost else found


def added(stage: Tensor, branch: Tensor, index: Tensor) -> Tensor:
    """``stage`` ``[B, C, …]`` with ``branch`` ``[B, k, …]`` added to its channels ``index`` ``[k]``, no two of them the same."""
    # A copy keeps the layout in memory, which index_add by itself does not.
    return stage.clone().index_add_(1, index, branch)


def _spread(index: Tensor, source: Tensor, innermost: bool) -> Tensor:
    """``[B, k]`` in the shape of what is taken from ``source``."""
    shape = [source.shape[0], *source.shape[1:-1], index.shape[1]] if innermost else [source.shape[0], index.shape[1], *source.shape[2:]]
    for _ in source.shape[2:]:
        index = index.unsqueeze(1 if innermost else -1)
    return index.expand(shape)


class TakeChannels(Operator):
    """``chansurg::take_channels``, with the arguments of :func:`taken`."""

    name = "take_channels"
    arguments = "Tensor x, Tensor index"
    differentiable = 1
    source, on_cuda = _SOURCE, _ON_CUDA

    def plain(self, *arguments: Any) -> Tensor:
        """See :func:`taken`."""
        return taken(*arguments)

    def empty(self, *arguments: Any) -> Tensor:
        """``[B, k, …]``."""
        x, index = arguments
        return empty(x, index.shape[1])

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        x, index = arguments
        innermost = channels_innermost(x)
        x, y, index = packed(x, innermost=innermost), empty(x, index.shape[1]), index.contiguous()
        if x.is_cuda:
            self.triton.take(x, index, y)
        else:
            self.compiled("take", x)(address(x), address(index), address(y), *_extents(x, index.shape[1]), ctypes.c_bool(innermost))
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`; torch's own scatter."""
        x, index = arguments
        innermost = channels_innermost(x)
        for_x = empty(x, x.shape[1]).zero_()
        source = for_x.movedim(1, -1) if innermost else for_x
        received = gradient.movedim(1, -1) if innermost else gradient
        source.scatter_add_(-1 if innermost else 1, _spread(index, source, innermost), received.to(x.dtype))
        return (for_x,)

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """Every image has places of its own: a batch of batches is a longer batch."""
        x, index = in_front(size, arguments, dims)
        return torch.unflatten(self(x.flatten(0, 1), index.flatten(0, 1)), 0, (size, -1)), 0


class AddChannels(Operator):
    """``chansurg::add_channels``, with the arguments of :func:`added`."""

    name = "add_channels"
    arguments = "Tensor stage, Tensor branch, Tensor index"
    differentiable = 2
    source, on_cuda = _SOURCE, _ON_CUDA

    def plain(self, *arguments: Any) -> Tensor:
        """See :func:`added`."""
        return added(*arguments)

    def empty(self, *arguments: Any) -> Tensor:
        """As ``stage``."""
        return empty(arguments[0], arguments[0].shape[1])

    def forward_kernel(self, *arguments: Any) -> Tensor:
        """See :class:`Operator`."""
        stage, branch, index = arguments
        innermost = channels_innermost(stage)
        stage, branch, y = packed(stage, innermost=innermost), packed(branch, innermost=innermost), empty(stage, stage.shape[1])
        if stage.is_cuda:
            self.triton.add(stage, branch, index, y)
        else:
            extents = _extents(stage, branch.shape[1])
            index = index.contiguous()
            self.compiled("add", stage)(
                address(stage), address(branch), address(index), address(y), *extents, ctypes.c_bool(innermost)
            )  # fmt: skip
        return y

    def backward_kernel(self, gradient: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        """See :class:`Operator`."""
        stage, _, index = arguments
        gradient = packed(gradient, innermost=channels_innermost(stage))
        # An operator may not hand out what it was given.
        return gradient.clone(), TAKE_CHANNELS(gradient, index.expand(gradient.shape[0], -1))

    def unbatched(self, size: int, arguments: Sequence[Any], dims: Sequence[int | None]) -> tuple[Tensor, int]:
        """One index serves all images."""
        if dims[2] is not None:
            return torch.stack(
                [self(*(a if d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True))) for i in range(size)]
            ), 0
        stage, branch = in_front(size, arguments[:2], dims[:2])
        return torch.unflatten(self(stage.flatten(0, 1), branch.flatten(0, 1), arguments[2]), 0, (size, -1)), 0


def _extents(x: Tensor, channels: int) -> tuple[ctypes.c_int64, ...]:
    return tuple(map(ctypes.c_int64, (x.shape[0], x.shape[1], channels, positions(x))))


TAKE_CHANNELS = TakeChannels()
ADD_CHANNELS = AddChannels()
