"""Which of the replaced convolution's filters and input slices each path starts with.

**The rule.** The bottom path at first sees the folded channels with the strongest slices, a third path the strongest of the others. A
filter on folded channels keeps, for each of them, the slice of one of the ``m`` channels that fold onto it: the one with the largest norm.
Each path's convolution takes the filters of which it keeps most, told by the norm of the slices kept, among those that no earlier path has
taken; they stay in their order. A filter of a grouped convolution serves where each of the folded channels has one of the filter's own
group in it; where there are too few such filters, the convolutions of the paths start at random. Equal norms go to the lower index; a
network without numbers takes the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from chansurg.recipes.slimconv.layer import Part, parts
from chansurg.surgery.keeping import Indices, filter_norms, slice_norms, strongest

_Row = tuple[int, Indices]


@dataclass(frozen=True)
class Start:
    """How one path's convolution begins.

    Args:
        filters: for each of its filters, the replaced convolution's filter whose place in the output it takes.
        slices: for each of its filters, the input slices of that one that it keeps, as positions in the weight's second dimension; ``None``
            where no filter sees the right channels, and the path starts at random.
    """

    filters: Indices
    slices: tuple[Indices, ...] | None


@dataclass(frozen=True)
class Starts:
    """How a slim convolution begins: its top, bottom and perhaps third path, and what the last two select of the folded channels."""

    paths: tuple[Start, ...]
    selections: tuple[Indices, ...]

    @property
    def kept(self) -> Indices:
        """The replaced convolution's output channels that are left, in the order in which the layer puts them out."""
        return tuple(i for path in self.paths for i in path.filters)


def starts(conv: nn.Conv2d, channels: Sequence[int], outputs: int, groups: int, folds: int, paths: int) -> Starts:
    """Choose filters, slices and selections.

    Args:
        conv: the convolution replaced, with its numbers or on the meta device.
        channels: those of its input channels that are left.
        outputs: the filters that the paths divide among them: a path has ``outputs / m`` or ``outputs / (2m)``.
        groups: of the slim convolution.
        folds: ``m``.
        paths: 2 or 3.
    """
    wanted = parts(len(channels), outputs, groups, folds, paths)
    selections = _selections(conv, channels, wanted, folds)
    filters = _Filters(conv, channels, folds)
    taken = [filters.take(folded, part) for folded, part in zip((tuple(range(wanted[0].inputs)), *selections), wanted, strict=True)]
    if any(rows is None for rows in taken):
        kept = iter(strongest([filter_norms(conv)], sum(part.outputs for part in wanted), conv.out_channels, 1))
        return Starts(tuple(Start(tuple(next(kept) for _ in range(part.outputs)), None) for part in wanted), selections)
    return Starts(tuple(Start(tuple(f for f, _ in rows), tuple(s for _, s in rows)) for rows in taken if rows is not None), selections)


def _selections(conv: nn.Conv2d, channels: Sequence[int], wanted: Sequence[Part], folds: int) -> tuple[Indices, ...]:
    """The folded channels that the paths behind the top one see at first: the strongest, then the strongest of the others."""
    size, part = wanted[0].inputs, wanted[1]
    norms = slice_norms(conv)
    strength = torch.ones(size, device="cpu") if norms is None else norms.cpu()[list(channels)].reshape(folds, size).amax(0)
    order = strength.argsort(descending=True, stable=True).tolist()
    rank = torch.tensor([size - order.index(folded) for folded in range(size)], dtype=torch.float, device="cpu")
    # Each group sees as many of its own; a depthwise convolution takes any.
    groups = 1 if part.groups == part.inputs or size % part.groups else part.groups
    found: list[Indices] = []
    for _ in wanted[1:]:
        found.append(strongest([rank], part.inputs, size, groups))
        rank[list(found[-1])] = 0.0
    return tuple(found)


class _Filters:
    """The replaced convolution's filters; each is taken once."""

    def __init__(self, conv: nn.Conv2d, channels: Sequence[int], folds: int) -> None:
        self._folds = folds
        self._channels = channels
        self._in_group = conv.in_channels // conv.groups
        self._out_group = conv.out_channels // conv.groups
        weight = conv.weight.detach()
        shape = (conv.out_channels, self._in_group)
        squares = torch.zeros(shape, device="cpu") if weight.is_meta else weight.float().flatten(2).square().sum(2).cpu()
        # A depthwise convolution has a group for every channel, and numpy is the quicker with many small arrays.
        self._squares = squares.numpy()
        self._strength = squares.reshape(conv.groups, self._out_group, self._in_group).sum(1).tolist()
        self._left = [True] * conv.out_channels

    def take(self, folded: Indices, part: Part) -> list[_Row] | None:
        """The filters of a path that sees the channels ``folded``, each with the slices it keeps; ``None`` where there are not enough."""
        rows: list[_Row] = []
        inputs = part.inputs // part.groups
        for group in range(part.groups):
            found = self._strongest(folded[group * inputs : (group + 1) * inputs], part.outputs // part.groups)
            if found is None:
                return None
            rows += found
        return rows

    def _strongest(self, folded: Indices, wanted: int) -> list[_Row] | None:
        """The strongest filters left that can work on these folded channels, in their order."""
        candidates: list[tuple[float, int, Indices]] = []
        for group, slices in self._fitting(folded):
            first = group * self._out_group
            scores = self._squares[first : first + self._out_group, slices].sum(1).tolist()
            candidates += [(-score, first + i, slices) for i, score in enumerate(scores) if self._left[first + i]]
        if len(candidates) < wanted:
            return None
        rows = sorted((row, slices) for _, row, slices in sorted(candidates)[:wanted])
        for row, _ in rows:
            self._left[row] = False
        return rows

    def _fitting(self, folded: Indices) -> Iterator[tuple[int, Indices]]:
        """Groups that see a channel of each of the folded ones, and for each of them the position of the strongest such slice."""
        size = len(self._channels) // self._folds
        places = [[divmod(self._channels[s + run * size], self._in_group) for run in range(self._folds)] for s in folded]
        for group in dict.fromkeys(group for group, _ in places[0]):
            positions = [[position for of, position in place if of == group] for place in places]
            if all(positions):
                strength = self._strength[group]
                yield group, tuple(max(choice, key=lambda p: (strength[p], -p)) for choice in positions)
