"""Means of maps, for layers that look at a whole image before they work on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_over(x: Tensor, dims: Sequence[int], *, keepdim: bool = False) -> Tensor:
    """The mean along some dimensions, in the precision of ``x``; in half precision summed in single, where whole images do not overflow.

    Args:
        x: any floating-point tensor.
        dims: to take the mean over; none leaves ``x`` as it is.
        keepdim: leave them in place, with a size of one.
    """
    if not dims:
        return x
    if x.dtype not in (torch.float16, torch.bfloat16):
        return x.mean(tuple(dims), keepdim=keepdim)
    # A mean's backward pass would write the gradient as a whole map in single precision, divide that and cast it.
    count = math.prod(x.shape[dim] for dim in dims)
    return (x.sum(tuple(dims), keepdim=keepdim, dtype=torch.float32) / count).to(x.dtype)
