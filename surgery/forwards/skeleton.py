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

    Tied parameters stay tied, and so do the dtypes and ``requires_grad`` flags. Hooks are left out, but for torch's own (an older
    ``weight_norm`` computes its weight in one): whoever hooked into the original does not want to hear of the copy.
    """
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) in memo:
            continue
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    copied = copy.deepcopy(model, memo).eval()
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not _is_torchs_own(hook)]:
                del hooks[key]
    return copied


def _is_torchs_own(hook: object) -> bool:
    home = hook.__module__ if callable(hook) and hasattr(hook, "__qualname__") else type(hook).__module__
    return home.partition(".")[0] == "torch"
