"""How a tensor's dimensions lie in memory, told by its strides: a ``1x1`` weight counts as contiguous in every format at once."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor ``[B, C, …, H, W]`` has exactly the strides of ``channels_last`` (or its 3d form), and not those of the default."""
    wanted = _CHANNELS_LAST.get(tensor.ndim)
    if wanted is None or not tensor.is_contiguous(memory_format=wanted):
        return False
    shape = torch.empty(tensor.shape, device="meta")
    return tensor.stride() != shape.stride() and tensor.stride() == torch.empty_like(shape, memory_format=wanted).stride()


def to_channels_last(tensor: Tensor) -> Tensor:
    """The tensor with exactly the strides of ``channels_last``; one that has no such format comes back as it is."""
    wanted = _CHANNELS_LAST.get(tensor.ndim)
    if wanted is None or is_channels_last(tensor):
        return tensor
    return torch.empty_like(tensor, memory_format=wanted).copy_(tensor)
