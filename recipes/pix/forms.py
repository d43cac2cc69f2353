"""Forms of the PiX layer for inference, of operators that runtimes have fast kernels for.

Where the layer has no kernel, it reduces its subsets twice, chooses between the results and scales the choice: passes over memory that
need not be. In the blended form both results have one factor a channel each, ``y = a * extreme + b * sum``, where ``a`` is ``p`` for what
picks and zero for what mixes, and ``b`` is ``p / size`` the other way round (Pick-or-Mix, Equations 2 and 3).

Of several ways to reduce the subsets, timed in turn on a CPU, those chosen took about half the layer's own time: elementwise over the
first, second, … channels of all subsets in torch, where the channels may lie far apart or innermost; and in ONNX Runtime a reduction
over an axis of its own where a subset is a run of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chansurg.recipes.pix.fusing import PICK_OR_MIX, fused
from chansurg.recipes.pix.sampling import SAMPLE_CHANNELS, probability

if TYPE_CHECKING:
    from chansurg.recipes.pix.layer import PickOrMix
    from chansurg.surgery.layer import Target

_MOST_GROUPS = 2


def form_for(layer: PickOrMix, target: Target) -> nn.Module:
    """The form of a PiX layer for a runtime: by its kernels where there are some; else blended, or itself in half precision."""
    if target.runtime in ("eager", "compile"):
        # Both are asked: an operator is in compiled graphs only once it has been asked for its kernel outside of them.
        has_kernels = [operator.has_kernel(layer.theta) for operator in (SAMPLE_CHANNELS, PICK_OR_MIX)]
        if any(has_kernels):
            return KernelPickOrMix(layer, nonnegative=target.nonnegative)
    groups = _groups(layer.subset_indices())
    if layer.theta.dtype not in (torch.float32, torch.float64) or len(groups) > _MOST_GROUPS:
        return layer
    return BlendedPickOrMix(layer, groups, nonnegative=target.nonnegative, by_axis=target.runtime == "onnxruntime")


class KernelPickOrMix(nn.Module):
    """A PiX layer by its kernels: ``[B, C, …] -> [B, K, …]``, or ``[B, …, C] -> [B, …, K]``.

    Args:
        layer: which it stands for.
        nonnegative: what comes in holds no negative number, so that its absolute values are itself.
    """

    order: Tensor | None

    def __init__(self, layer: PickOrMix, *, nonnegative: bool) -> None:
        super().__init__()
        self.theta, self.beta = layer.theta, layer.beta
        self.channel_dim, self.nonnegative = layer.channel_dim, nonnegative
        order, *choice = layer.choice()
        self.register_buffer("order", order)
        self._choice: tuple[Any, ...] = tuple(choice)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        channel = self.channel_dim % x.ndim
        x = x if channel == 1 else x.movedim(channel, 1)
        theta, beta, order = self.theta, self.beta, self.order
        if x.dtype == theta.dtype and SAMPLE_CHANNELS.serves(x):
            y = SAMPLE_CHANNELS(x, theta, beta, order, *self._choice, self.nonnegative)
        else:
            p = probability(x, theta, beta, nonnegative=self.nonnegative).to(x.dtype)
            y = (PICK_OR_MIX if PICK_OR_MIX.serves(x) else fused)(x, p, order, *self._choice)
        return y if channel == 1 else y.movedim(1, channel)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.theta.shape[1]} -> {self.theta.shape[0]}"


@dataclass(frozen=True)
class Group:
    """Neighbouring outputs whose subsets have one size.

    Args:
        begin: the first of them.
        subsets: the input channels of each.
    """

    begin: int
    subsets: Sequence[Sequence[int]]

    @property
    def is_run(self) -> bool:
        """Whether the subsets are neighbours in order, and so are the channels in each."""
        channels = [channel for subset in self.subsets for channel in subset]
        return channels == list(range(channels[0], channels[0] + len(channels)))


def _groups(subsets: Sequence[Sequence[int]]) -> list[Group]:
    found: list[Group] = []
    for _, members in groupby(subsets, key=len):
        begin = 0 if not found else found[-1].begin + len(found[-1].subsets)
        found.append(Group(begin, list(members)))
    return found


class BlendedPickOrMix(nn.Module):
    """A PiX layer as a blend of its subsets' extremes and sums: ``[B, C, …] -> [B, K, …]``, or ``[B, …, C] -> [B, …, K]``.

    Args:
        layer: whose tensors, operator and subsets it takes.
        groups: the layer's subsets.
        nonnegative: what comes in holds no negative number, so that its absolute values are itself.
        by_axis: reduce subsets that are runs along an axis of their own, instead of channel by channel.
    """

    shares: Tensor

    def __init__(self, layer: PickOrMix, groups: Sequence[Group], *, nonnegative: bool, by_axis: bool) -> None:
        super().__init__()
        self.theta, self.beta = layer.theta, layer.beta
        self.operator, self.tau, self.channel_dim = layer.operator, layer.tau, layer.channel_dim
        self.groups = tuple(groups)
        self.nonnegative, self.by_axis = nonnegative, by_axis
        shares = [1 / len(subset) for group in groups for subset in group.subsets]
        self.register_buffer("shares", torch.tensor(shares, dtype=layer.theta.dtype, device=layer.theta.device), persistent=False)
        for number, group in enumerate(groups):
            for place, channels in enumerate(zip(*group.subsets, strict=True)):
                if _step(channels) is None:
                    index = torch.tensor(channels, dtype=torch.int64, device=layer.theta.device)
                    self.register_buffer(f"channels_{number}_{place}", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        channel = self.channel_dim % x.ndim
        p = probability(x, self.theta, self.beta, channel, nonnegative=self.nonnegative)
        picking, mixing = self._factors(p)
        blended = [self._blend(x, channel, number, picking, mixing) for number in range(len(self.groups))]
        return blended[0] if len(blended) == 1 else torch.cat(blended, channel)

    def _factors(self, p: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the extremes and the sums are multiplied by, ``[B, K]`` each; ``None`` where the operator has no use for them."""
        if self.operator == "pick":
            return p, None
        if self.operator == "mix":
            return None, p * self.shares
        picking = torch.where(p <= self.tau, p, 0.0)
        return picking, (p - picking) * self.shares

    def _blend(self, x: Tensor, channel: int, number: int, picking: Tensor | None, mixing: Tensor | None) -> Tensor:
        group = self.groups[number]
        extreme, total = self._reduced(x, channel, number, picking is not None, mixing is not None)

        def spread(factors: Tensor) -> Tensor:
            part = factors.narrow(1, group.begin, len(group.subsets))
            for dim in range(1, x.ndim):
                part = part if dim == channel else part.unsqueeze(dim)
            return part

        if picking is None or extreme is None:
            assert mixing is not None
            assert total is not None
            return spread(mixing) * total
        picked = spread(picking) * extreme
        return picked if mixing is None or total is None else torch.addcmul(picked, spread(mixing), total)

    def _reduced(self, x: Tensor, channel: int, number: int, picks: bool, mixes: bool) -> tuple[Tensor | None, Tensor | None]:
        """The extreme of each subset of a group, and its sum, where they are wanted."""
        group = self.groups[number]
        least = self.operator == "min"
        if self.by_axis and group.is_run:
            runs = torch.unflatten(x.narrow(channel, *_extent(group)), channel, (len(group.subsets), -1))
            after = runs.shape[channel + 2 :]
            flat = runs.flatten(channel + 2) if len(after) > 1 else runs  # more dimensions are slow to reduce
            found = [
                reduction(flat, channel + 1) if wanted else None
                for reduction, wanted in ((torch.amin if least else torch.amax, picks), (torch.sum, mixes))
            ]
            shaped = [None if part is None else torch.unflatten(part, channel + 1, after) if len(after) > 1 else part for part in found]
            return shaped[0], shaped[1]
        parts = [self._part(x, channel, number, place) for place in range(len(group.subsets[0]))]
        join: Callable[[Tensor, Tensor], Tensor] = torch.minimum if least else torch.maximum
        return reduce(join, parts) if picks else None, reduce(torch.add, parts) if mixes else None

    def _part(self, x: Tensor, channel: int, number: int, place: int) -> Tensor:
        """The channel at one place of each subset of a group."""
        channels = [subset[place] for subset in self.groups[number].subsets]
        step = _step(channels)
        if step is None:
            return x.index_select(channel, self.get_buffer(f"channels_{number}_{place}"))
        if step == 1:
            return x.narrow(channel, channels[0], len(channels))
        return x[(slice(None),) * channel + (slice(channels[0], channels[-1] + 1, step),)]

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        sizes = ", ".join(f"{len(group.subsets)} of {len(group.subsets[0])}" for group in self.groups)
        return f"{self.theta.shape[1]} -> {self.theta.shape[0]}, operator={self.operator}, {sizes}"


def _extent(group: Group) -> tuple[int, int]:
    return group.subsets[0][0], len(group.subsets) * len(group.subsets[0])


def _step(channels: Sequence[int]) -> int | None:
    """The distance between neighbours where it is the same everywhere; ``None`` where it is not."""
    if len(channels) == 1:
        return 1
    step = channels[1] - channels[0]
    return step if step > 0 and list(channels) == list(range(channels[0], channels[0] + step * len(channels), step)) else None
