"""The form of a slim convolution for inference on CPU: its attention and its folds by one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from chansurg.recipes.slimconv.attending import ATTEND_CHANNELS, attention
from chansurg.recipes.slimconv.folding import folded

if TYPE_CHECKING:
    from chansurg.recipes.slimconv.layer import SlimConv
    from chansurg.surgery.layer import Target


def form_for(layer: SlimConv, target: Target) -> nn.Module:
    """The form of a slim convolution for a runtime; the layer itself where there is no kernel, or its attention still has a norm."""
    folded_norm = isinstance(layer.norm, nn.Identity) and layer.squeeze.bias is not None
    serves = target.runtime in ("eager", "compile") and folded_norm and ATTEND_CHANNELS.has_kernel(layer.squeeze.weight)
    return KernelSlimConv(layer) if serves else layer


class KernelSlimConv(nn.Module):
    """A slim convolution by its kernel: ``[B, C_in, H, W] -> [B, out_channels, H', W']``.

    Args:
        layer: whose modules it holds, under the same names.
    """

    orders: Tensor

    def __init__(self, layer: SlimConv) -> None:
        super().__init__()
        self.folds = layer.folds
        self.squeeze, self.excite = layer.squeeze, layer.excite
        self.top, self.bottom, self.third = layer.top, layer.bottom, layer.third
        places = layer.orders(torch.arange(layer.in_channels)[None, :, None, None])
        taken = [place.flatten().tolist() for place in places]
        distinct = [order for number, order in enumerate(taken) if order not in taken[:number]]
        self.places = [distinct.index(order) for order in taken]
        self.register_buffer("orders", torch.tensor(distinct, device=self.squeeze.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        squeeze, excite = self.squeeze, self.excite
        assert squeeze.bias is not None
        assert excite.bias is not None
        attended = (squeeze.weight.flatten(1), squeeze.bias, excite.weight.flatten(1), excite.bias)
        if x.dtype == attended[0].dtype and ATTEND_CHANNELS.serves(x):
            folds = ATTEND_CHANNELS(x, *attended, self.orders, self.folds).unbind(0)
        else:
            folds = folded(x, attention(x, *attended)[:, self.orders].to(x.dtype), self.folds).unbind(0)
        paths = [self.top, self.bottom, *([] if self.third is None else [self.third])]
        return torch.cat([path(folds[place]) for place, path in zip(self.places, paths, strict=True)], 1)
