"""A short digest of a network's numbers, to notice that they were changed: by training, or by another state dict."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLES = 64
_DIGITS = 16


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that change when the tensors of ``model`` do; empty where they have no numbers.

    Each tensor of the state dict gives its name, dtype, shape and up to 64 values spread over it. That is quick, does not depend on memory
    format or number of threads, and notices any training step; it is no proof that nothing was changed by hand.
    """
    told = _told(model)
    return "" if told is None else hashlib.sha256(b"".join(told.values())).hexdigest()[:_DIGITS]


def tensor_digests(model: nn.Module) -> dict[str, str]:
    """The same for each tensor, by name; empty where they have no numbers."""
    return {name: hashlib.sha256(told).hexdigest()[:_DIGITS] for name, told in (_told(model) or {}).items()}


def _told(model: nn.Module) -> dict[str, bytes] | None:
    """What each tensor gives; ``None`` where one has no numbers."""
    found: dict[str, bytes] = {}
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            return None
        found[name] = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        if tensor.numel():
            at = torch.linspace(0, tensor.numel() - 1, min(_SAMPLES, tensor.numel()), dtype=torch.float64).long()
            values = tensor.detach()[torch.unravel_index(at.to(tensor.device), tensor.shape)] if tensor.ndim else tensor.detach()
            found[name] += repr(values.flatten().tolist()).encode()
    return found
