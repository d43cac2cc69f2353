"""Playing two networks segment by segment, with what lies at the present cut in memory and nothing else.

At every cut the original's activation and the converted network's are kept for as many images as fit into a stated number of bytes. Early
maps are large, and a few images have positions enough there; later ones are small, and the images left out before catch up: they run from
the beginning once, through what has been fitted by then. So each image runs through each network once, whatever fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from chansurg.surgery.calibration.segments import Part, Segment, is_constant
from chansurg.surgery.survey.kinds import shape_of
from chansurg.surgery.survey.regions import GraphPlayer, Region

BYTES = 1_500_000_000
"""Activations of both networks that are kept at once."""
RUNNING_BYTES = 250_000_000
"""What one batch may take while it runs, told by the tensors of a segment."""
LARGEST_BATCH = 64

Source = Callable[[int, int], Tensor]
"""Inputs of a region, of the images from one number to another."""


class _Graph(GraphPlayer):
    """Runs a region's graph on real modules; tensors that the code itself makes are the trace's."""

    def __init__(self, root: nn.Module, region: Region) -> None:
        super().__init__(root, garbage_collect_values=False, graph=region.graph)
        self._traced = region.root

    def fetch_attr(self, target: str) -> Any:
        """A parameter, a buffer, or what the trace made of a constant."""
        return getattr(self._traced, target) if is_constant(target) else super().fetch_attr(target)


class Player:
    """One network's region, run on real tensors in eval mode.

    Args:
        network: the network with its numbers.
        region: as its survey found it; its nodes carry the modules' meta copies, and are run with the network's own.
    """

    def __init__(self, network: nn.Module, region: Region) -> None:
        self._graph = _Graph(network.get_submodule(region.path), region)

    def run(self, part: Part, x: Tensor, keep: Collection[fx.Node] = (), until: fx.Node | None = None) -> dict[fx.Node, Tensor]:
        """What ``keep`` and the part's exit compute from ``x``, the output of its entry.

        Args:
            part: a run of the region's graph.
            x: of the entry; it is not changed.
            keep: nodes whose outputs are wanted; they are safe from what is written into them later.
            until: stop behind this node; the exit is then not there.
        """
        env: dict[fx.Node, Any] = {part.entry: x.clone()}
        self._graph.env = env
        found: dict[fx.Node, Tensor] = {part.entry: x} if part.entry in keep else {}
        last = _last_uses(part)
        for node in part.nodes:
            env[node] = self._graph.run_node(node)
            if node in keep:
                found[node] = env[node].clone()
            if node is until:
                return found
            for source in node.all_input_nodes:
                if last[source] is node and source is not part.exit:
                    env.pop(source, None)
        found.setdefault(part.exit, env[part.exit])
        return found

    def constant(self, node: fx.Node) -> Tensor:
        """What a node computes that depends on no input."""
        env = self._graph.env = {}

        def compute(wanted: fx.Node) -> Any:
            for source in wanted.all_input_nodes:
                if source not in env:
                    env[source] = compute(source)
            return self._graph.run_node(wanted)

        found: Tensor = compute(node)
        return found

    def output(self, part: Part, x: Tensor) -> Tensor:
        """What the part makes of ``x``."""
        return self.run(part, x)[part.exit]


def _last_uses(part: Part) -> dict[fx.Node, fx.Node]:
    return {source: node for node in part.nodes for source in node.all_input_nodes}


class Carried:
    """The activations of both networks at the present cut.

    Args:
        original: plays the original.
        converted: plays the converted network.
        sources: inputs of the region in the original, and in the converted network.
        count: how many images there are.
        share: the part of :data:`BYTES` that is theirs.
        solving: how many of them statistics and closed forms are taken from, at most.

    Attributes:
        theirs: what the original has at the cut, one tensor for each batch.
        ours: what the converted network has there, likewise.
        targets: what the original has at the end of the present segment, with the channels that the converted network has there.
    """

    def __init__(self, original: Player, converted: Player, sources: tuple[Source, Source], count: int, share: float, solving: int) -> None:
        self._players = original, converted
        self._sources = sources
        self._count = count
        self._bytes = BYTES * share
        self._solving = solving
        self._passed: list[Segment] = []
        self._reached = 0
        self.theirs: list[Tensor] = []
        self.ours: list[Tensor] = []
        self.targets: list[Tensor] = []
        self._ends: list[Tensor] = []

    @property
    def images(self) -> int:
        """How many images are carried."""
        return self._reached

    def solving(self) -> list[tuple[Tensor, Tensor]]:
        """What each network has at the cut, batch by batch, of as many images as statistics and closed forms are taken from."""
        found: list[tuple[Tensor, Tensor]] = []
        taken = 0
        for theirs, ours in zip(self.theirs, self.ours, strict=True):
            if taken < self._solving:
                found.append((theirs, ours))
                taken += len(ours)
        return found

    def telling(self) -> list[Tensor]:
        """What the converted network has there of those, for norms; without a single image that is left over from larger batches."""
        batches = [ours for _, ours in self.solving()]
        return [batch for batch in batches if len(batch) > 1] or batches

    def begin(self, segment: Segment) -> None:
        """Carry as many images as fit to the segment's beginning, and see what the original makes of them at its end."""
        parts = segment.original, segment.converted
        each = sum(_bytes(node) for part in parts for node in (part.entry, part.exit))
        wanted = max(1, min(self._count, int(self._bytes / each)))
        self._drop(wanted)
        self._catch_up(wanted, batch_size(parts))
        self._ends = [self._players[0].output(segment.original, x) for x in self.theirs]
        self.targets = [selected(segment, end) for end in self._ends]

    def end(self, segment: Segment) -> None:
        """Go on to the segment's end."""
        self.theirs, self._ends, self.targets = self._ends, [], []
        self.ours = [self._players[1].output(segment.converted, x) for x in self.ours]
        self._passed.append(segment)

    def _drop(self, wanted: int) -> None:
        while self._reached > wanted and len(self.ours) > 1 and self._reached - len(self.ours[-1]) >= wanted:
            self._reached -= len(self.ours.pop())
            self.theirs.pop()
        if self._reached > wanted:
            surplus = self._reached - wanted
            for values in (self.theirs, self.ours):
                values[-1] = values[-1][: len(values[-1]) - surplus].clone()
            self._reached = wanted

    def _catch_up(self, wanted: int, size: int) -> None:
        while self._reached < wanted:
            stop = min(wanted, self._reached + min([size, *(batch_size((s.original, s.converted)) for s in self._passed)]))
            theirs, ours = (source(self._reached, stop) for source in self._sources)
            for segment in self._passed:
                theirs = self._players[0].output(segment.original, theirs)
                ours = self._players[1].output(segment.converted, ours)
            self.theirs.append(theirs)
            self.ours.append(ours)
            self._reached = stop


def selected(segment: Segment, x: Tensor) -> Tensor:
    """Those of the original's channels at the segment's end that the converted network has."""
    return select(x, segment.channels, segment.axis)


def select(x: Tensor, channels: Sequence[int] | None, axis: int) -> Tensor:
    """These channels of ``x``; ``None`` is all."""
    return x if channels is None else x.index_select(axis, torch.tensor(channels, device=x.device))


def batch_size(parts: Sequence[Part]) -> int:
    """How many images run at once in any of these parts."""
    most = max(sum(_bytes(node) for node in (part.entry, *part.nodes)) for part in parts)
    return max(1, min(LARGEST_BATCH, RUNNING_BYTES // max(1, most)))


def _bytes(node: fx.Node) -> int:
    """Of what the node computes from one image, in single precision."""
    shape = shape_of(node)
    return 0 if shape is None else 4 * math.prod(shape[1:])


def error(player: Player, segment: Segment, carried: Carried) -> float:
    """The relative error of the converted network's segment at its end: the distance from the original's over that one's length."""
    apart = length = 0.0
    for x, target in zip(carried.ours, carried.targets, strict=True):
        apart += float((player.output(segment.converted, x) - target).double().square().sum())
        length += float(target.double().square().sum())
    return math.sqrt(apart / length) if length > 0 else (0.0 if apart == 0 else math.inf)
