"""What differs between two networks as objects: their journals and their tensors, not their outputs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.files.provenance import record_of, unwrapped


@dataclass(frozen=True)
class Difference:
    """What is in one network and not in the other.

    Args:
        same_architecture: whether both began as the same architecture with the same arguments.
        same_journal: whether the same edits were made to both.
        edits_only_in_a: edits of the first that the second lacks, as JSON values.
        edits_only_in_b: the other way round.
        tensors_only_in_a: names.
        tensors_only_in_b: names.
        reshaped: ``{"name", "a", "b"}`` with both shapes.
        changed: ``{"name", "max_abs_difference"}`` for tensors of one shape and other values or dtype; ``None`` where not finite.
        equal: how many tensors are the same to the bit.
    """

    same_architecture: bool
    same_journal: bool
    edits_only_in_a: list[dict[str, Any]] = field(default_factory=list)
    edits_only_in_b: list[dict[str, Any]] = field(default_factory=list)
    tensors_only_in_a: list[str] = field(default_factory=list)
    tensors_only_in_b: list[str] = field(default_factory=list)
    reshaped: list[dict[str, Any]] = field(default_factory=list)
    changed: list[dict[str, Any]] = field(default_factory=list)
    equal: int = 0

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a.device), rtol=0, atol=0, equal_nan=True) if a.is_floating_point() else torch.equal(a, b.to(a.device))


def diff(a: nn.Module, b: nn.Module) -> Difference:
    """Compare two networks' records and tensors."""
    record_a, record_b = record_of(a), record_of(b)
    edits_a, edits_b = ([edit.as_json() for entry in record.journal for edit in entry.edits] for record in (record_a, record_b))
    keys_a, keys_b = ([json.dumps(edit, sort_keys=True) for edit in edits] for edits in (edits_a, edits_b))
    state_a, state_b = unwrapped(a).state_dict(), unwrapped(b).state_dict()
    reshaped, changed, equal = [], [], 0
    for name, tensor in state_a.items():
        other = state_b.get(name)
        if other is None:
            continue
        if tensor.shape != other.shape:
            reshaped.append({"name": name, "a": list(tensor.shape), "b": list(other.shape)})
            continue
        if tensor.dtype != other.dtype or not _same_numbers(tensor, other):
            gap = (tensor.double() - other.double().to(tensor.device)).abs().max().item() if tensor.numel() else 0.0
            changed.append({"name": name, "max_abs_difference": gap if math.isfinite(gap) else None})
        else:
            equal += 1
    return Difference(
        same_architecture=record_a.architecture == record_b.architecture,
        same_journal=keys_a == keys_b,
        edits_only_in_a=[edit for edit, key in zip(edits_a, keys_a, strict=True) if key not in keys_b],
        edits_only_in_b=[edit for edit, key in zip(edits_b, keys_b, strict=True) if key not in keys_a],
        tensors_only_in_a=[name for name in state_a if name not in state_b],
        tensors_only_in_b=[name for name in state_b if name not in state_a],
        reshaped=reshaped,
        changed=changed,
        equal=equal,
    )
