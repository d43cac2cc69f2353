"""Whether what was made of a network still computes what the network does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chansurg.surgery.nested import tensors_in
from chansurg.surgery.verification import finite_numbers, gap, relative


@dataclass(frozen=True)
class Agreement:
    """How far two sets of outputs are apart.

    Args:
        max_abs_error: largest difference.
        max_rel_error: largest difference over the largest number of the same output.
        reason: why they cannot be compared, where that is so; the errors are then infinite.
    """

    max_abs_error: float
    max_rel_error: float
    reason: str | None = None


def compare(expected: Any, found: Any) -> Agreement:
    """Compare what two networks put out for the same input: tensors, alone or in nested containers."""
    wanted, given = tensors_in(expected), tensors_in(found)
    shapes = [[list(tensor.shape) for tensor in side] for side in (wanted, given)]
    if shapes[0] != shapes[1]:
        return Agreement(float("inf"), float("inf"), f"the outputs have shapes {shapes[1]}, and the network's {shapes[0]}")
    absolute = by_size = 0.0
    for p, q in zip(wanted, given, strict=True):
        if p.numel():
            largest = gap(p.detach().cpu(), q.detach().cpu()).max()
            absolute = max(absolute, largest.item())
            by_size = max(by_size, relative(largest, finite_numbers(p.detach().cpu()).abs().max()))
    return Agreement(absolute, by_size)


def worst(agreements: Iterable[Agreement]) -> Agreement:
    """The largest errors of several comparisons, and the first reason."""
    every = list(agreements)
    return Agreement(
        max((one.max_abs_error for one in every), default=0.0),
        max((one.max_rel_error for one in every), default=0.0),
        next((one.reason for one in every if one.reason is not None), None),
    )


def outputs(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    """What a network puts out, without gradients. The input is a copy: some networks change theirs in place."""
    with torch.no_grad():
        return network(x.clone())
