"""Calls of the project's operators: each with arguments of many shapes, layouts and precisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.pix.partition import contiguous_runs
from chansurg.recipes.pix.sampling import SAMPLE_CHANNELS
from chansurg.recipes.slimconv.attending import ATTEND_CHANNELS
from chansurg.recipes.slimconv.folding import FOLD_CHANNELS
from chansurg.surgery.kernels.moving import ADD_CHANNELS, TAKE_CHANNELS
from chansurg.surgery.kernels.operators import Operator

SHAPES = [(1, 8, 5, 7), (3, 12, 1, 1), (2, 10, 30, 33), (2, 144, 3, 3), (2, 24, 9), (3, 16, 2, 3, 4)]


def as_they_come(x: Tensor) -> Tensor:
    return x


def channels_innermost(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def with_gaps(x: Tensor) -> Tensor:
    """Every second number of a tensor that is twice as long."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


LAYOUTS: list[Callable[[Tensor], Tensor]] = [as_they_come, channels_innermost, with_gaps]


@dataclass(frozen=True)
class Call:
    """One call: the operator and what it is given."""

    operator: Operator
    arguments: tuple[Any, ...]
    name: str

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that gradients flow to."""
        return self.arguments[: self.operator.differentiable]

    def leaves(self) -> tuple[Any, ...]:
        """The arguments with gradients wanted; the layout is kept."""
        made = [tensor.detach().requires_grad_() for tensor in self.inputs]
        return (*made, *self.arguments[len(made) :])


def calls(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Iterator[Call]:
    """Calls of every operator; values are rectified, so that many are equal."""
    torch.manual_seed(0)
    for shape in SHAPES:
        for layout in LAYOUTS:
            x = layout(torch.randn(shape, device=device).to(dtype).relu())
            for made in (*_pick_or_mix(x), *_fold_channels(x), *_moving(x)):
                yield Call(made.operator, made.arguments, f"{made.name}-{'x'.join(map(str, shape))}-{layout.__name__}")


def _pick_or_mix(x: Tensor) -> Iterator[Call]:
    batch, channels = x.shape[:2]
    for outputs, zeta in ((max(1, channels // 4), None), (-(-channels // 3), 3), (channels, None)):
        p = torch.rand(batch, outputs, device=x.device).to(x.dtype)
        theta, beta = ((torch.randn(shape, device=x.device)).to(x.dtype) for shape in ((outputs, channels), (outputs,)))
        for subsets in ("contiguous", "strided", "named"):
            groups = contiguous_runs(channels, outputs, None if subsets == "strided" else zeta)
            if subsets == "strided" and zeta is not None:
                continue
            order = torch.randperm(channels, device=x.device) if subsets == "named" else None
            counts, sizes = [count for count, _ in groups], [size for _, size in groups]
            for least, tau in ((False, 0.5), (True, 0.3), (False, torch.inf), (False, -torch.inf)):
                choice = (order, counts, sizes, subsets == "strided", least, tau)
                yield Call(PICK_OR_MIX, (x, p, *choice), f"pick_or_mix-{subsets}-{outputs}-{least}-{tau}")
                # In half precision a probability that is rounded otherwise may lie on the other side of the threshold.
                if x.dtype == torch.float32 or tau in (torch.inf, -torch.inf):
                    arguments = (x - 0.1, theta, beta, *choice, False) if least else (x, theta, beta, *choice, True)
                    yield Call(SAMPLE_CHANNELS, arguments, f"sample_channels-{subsets}-{outputs}-{least}-{tau}")


def _fold_channels(x: Tensor) -> Iterator[Call]:
    batch, channels = x.shape[:2]
    if x.ndim != 4:
        return
    for folds, orders in ((2, 2), (channels // 2, 1), (2, 3)):
        weights = torch.rand(batch, orders, channels, device=x.device).to(x.dtype)
        yield Call(FOLD_CHANNELS, (x, weights, folds), f"fold_channels-{folds}-{orders}")
        shapes = ((3, channels), (3,), (channels, 3), (channels,))
        attention = [torch.randn(shape, device=x.device).to(x.dtype) for shape in shapes]
        places = torch.stack([torch.randperm(channels, device=x.device) for _ in range(orders)])
        yield Call(ATTEND_CHANNELS, (x, *attention, places, folds), f"attend_channels-{folds}-{orders}")


def _moving(x: Tensor) -> Iterator[Call]:
    batch, channels = x.shape[:2]
    index = torch.stack([torch.randperm(channels, device=x.device)[: channels // 2] for _ in range(batch)])
    yield Call(TAKE_CHANNELS, (x, index), "take_channels")
    branch = torch.randn(batch, channels // 2, *x.shape[2:], device=x.device).to(x.dtype)
    yield Call(ADD_CHANNELS, (x, branch, index[0]), "add_channels")
