"""Whether two networks compute the same, given the same tensors: told from their modules' types and every plain attribute.

Builders of one library often share names and shapes and still differ (a padding rule, an epsilon, an activation). Neither the state
dict nor ``repr`` shows all of that; the attributes that ``forward`` reads do.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

# The machinery of nn.Module; all that a network computes with lies elsewhere.
_MACHINERY = frozenset(vars(nn.Module())) | {"_is_full_backward_hook", "_non_persistent_buffers_set"}
# What a network is called, where its weights are, how many classes it has; what its parameters were before training.
_LABELS = frozenset(
    [
        *("num_classes", "default_cfg", "pretrained_cfg", "head_cfg", "grad_checkpointing", "feature_info", "_traits"),
        *("init_values", "weight_init"),
    ]
)


def computation(model: nn.Module) -> str:
    """A digest of what the network computes: equal for networks with equal module types, attributes and order of children."""
    return hashlib.blake2b(_told(model, ()).encode(), digest_size=8).hexdigest()


def _told(value: Any, inside: tuple[int, ...]) -> str:
    """A text that is equal for equal values and free of addresses."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.Size):
        return repr(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}{value.dtype}"
    if id(value) in inside:
        return "(itself)"
    inside = (*inside, id(value))
    if isinstance(value, nn.Module):
        plain = {name: item for name, item in vars(value).items() if name not in _MACHINERY | _LABELS}
        tensors = dict([*value._parameters.items(), *value._buffers.items()])
        children = [f"{name}:{_told(child, inside)}" for name, child in value._modules.items()]
        return f"{_name(type(value))}{_told(plain, inside)}{_told(tensors, inside)}[{';'.join(children)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(sorted(f"{_told(key, inside)}:{_told(item, inside)}" for key, item in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ",".join(sorted(_told(item, inside) for item in value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_told(item, inside) for item in value) + "]"
    if isinstance(value, functools.partial):
        return f"partial({_told(value.func, inside)},{_told(value.args, inside)},{_told(value.keywords, inside)})"
    if isinstance(value, types.MethodType):
        return f"method({_name(value.__func__)})"
    if isinstance(value, types.FunctionType):
        cells = [_told(cell.cell_contents, inside) for cell in value.__closure__ or ()]
        return f"{_name(value)}{_told(value.__defaults__, inside)}{cells}"
    if isinstance(value, type) or callable(value):
        return _name(value)
    return f"{_name(type(value))}{_told(getattr(value, '__dict__', None), inside)}"


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
