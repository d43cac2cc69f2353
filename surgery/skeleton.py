"""A network without its numbers: the same modules with every parameter and buffer on the meta device.

Understanding, counting and replaying all need a network's shape and never its values, so they work on such a copy; the caller's network
is neither changed nor computed with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy of ``model`` on the meta device, in eval mode; no tensor data is copied.

    Tied parameters stay tied, and so do the dtypes and ``requires_grad`` flags.
    """
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) in memo:
            continue
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo).eval()
