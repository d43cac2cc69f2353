"""A network run for its outputs alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def outputs(network: nn.Module, x: Tensor = X) -> Tensor:
    """What the network puts out, in the mode it is in, without gradients."""
    with torch.no_grad():
        found: Tensor = network(x)
    return found
