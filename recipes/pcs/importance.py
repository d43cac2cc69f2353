"""Which of two equally salient entries is kept longer: the one whose filters matter more.

**The rule.** An entry's importance is the Euclidean norm, over its channels, of the channel's norm scale times the norm of its filter:
``|gamma_c| * ||w_c||``, with ``gamma = 1`` where no norm follows the layer. A conversion starts with all saliences equal, so this decides
what shrinks first.
"""

from __future__ import annotations

import torch
from torch import nn


def importance_of(layer: nn.Module, norm: nn.Module | None, unit: int) -> list[float] | None:
    """The importance of every entry, to five digits; ``None`` where there are no numbers.

    Args:
        layer: a convolution or linear layer with ``entries * unit`` filters.
        norm: the norm behind it, if any.
        unit: channels an entry.
    """
    weight = layer.weight
    if not isinstance(weight, torch.Tensor) or weight.is_meta:
        return None
    norms = weight.detach().double().flatten(1).norm(dim=1)
    scale = getattr(norm, "weight", None)
    if isinstance(scale, torch.Tensor):
        norms = norms * scale.detach().double().abs().to(norms.device)
    return [float(f"{value:.5g}") for value in norms.reshape(-1, unit).norm(dim=1).tolist()]
