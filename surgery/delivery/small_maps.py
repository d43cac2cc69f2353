"""Convolutions of small maps in eager torch on CPU.

Torch sends a convolution whose input has no more than 20,480 numbers past oneDNN, to a matrix product on unfolded patches. With several
taps that is about 1.5 times as slow, and narrowed networks have many: one image at 7x7 pixels with fewer than 418 channels. Where a
map has but a few pixels, patches are the quicker way.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from chansurg.surgery.layer import Target

LARGEST = 20480
FEWEST_PIXELS = 16
HAS_ONEDNN = bool(cast(Any, torch.backends.mkldnn).is_available())


def form_for(conv: nn.Conv2d, target: Target) -> nn.Module:
    """The convolution in the form that is fastest on ``target``; itself where it is that."""
    taps = prod(conv.kernel_size)
    shape = target.shapes[0] if target.shapes else None  # nobody knows it inside a layer of a recipe
    small = shape is None or (prod(shape) <= LARGEST and prod(shape[2:]) >= FEWEST_PIXELS)
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.groups == 1
    here = target.runtime == "eager" and target.device == "cpu" and HAS_ONEDNN
    return SmallMapConv2d(conv) if taps > 1 and small and plain and here and conv.weight.dtype == torch.float32 else conv


class SmallMapConv2d(nn.Module):
    """A convolution that always goes to oneDNN: ``[B, C_in, H, W] -> [B, C_out, H', W']``.

    Args:
        conv: whose weights it shares.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.padding, self.stride, self.dilation = [int(n) for n in conv.padding], list(conv.stride), list(conv.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        convolved: Tensor = torch.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, self.dilation, 1)
        return convolved
