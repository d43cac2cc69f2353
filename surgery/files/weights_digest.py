"""A short digest of a network's numbers, to notice that they were changed: by training, or by another state dict."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_SAMPLES = 64


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that change when the tensors of ``model`` do; empty where they have no numbers.

    Each tensor of the state dict gives its name, dtype, shape and up to 64 values spread over it. That is quick, does not depend on memory
    format or number of threads, and notices any training step; it is no proof that nothing was changed by hand.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_meta:
            return ""
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            at = torch.linspace(0, tensor.numel() - 1, min(_SAMPLES, tensor.numel()), dtype=torch.float64).long()
            values = tensor.detach()[torch.unravel_index(at.to(tensor.device), tensor.shape)] if tensor.ndim else tensor.detach()
            digest.update(repr(values.flatten().tolist()).encode())
    return digest.hexdigest()[:16]
