"""How a slim convolution begins where images have told what it reads, and what reads it.

**The rule.** Of the replaced convolution those filters stay from whose channels the readers' responses can best be given again; the most
telling go to the top path. The attention starts as one number a channel, for every image: those under which the folded channels let the
filters of all paths, fitted anew, give their responses again best, by gradient ascent on what they then give. The paths share these
numbers in their own orders, so they are sought together. ``reduce`` selects the folded channels that are most telling. A convolution with
groups keeps its filters by :mod:`chansurg.recipes.slimconv.filters`, and as each of them sees few folded channels, its attention just
starts open for the channel that gives most of those that fold onto each other.

On a ResNet-20 trained on CIFAR-10, with ``k = 8/3``, a refitted top path lacks 0.12 to 0.52 of its response with a fitted attention, and
0.23 to 0.60 with one that weighs all channels alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from chansurg.recipes.slimconv.filters import Start, Starts
from chansurg.recipes.slimconv.options import SlimConvOptions
from chansurg.recipes.slimconv.sites import SlimSite
from chansurg.surgery.demand import Demand, demand_of, reading_of
from chansurg.surgery.keeping import Indices, most_telling
from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.kinds import path_of

STEPS = (20, 100)
"""At least, and at most where the folded channels are few enough."""
RATE = 0.1
_WORK = 4e9
"""Multiplications after which no step but the least is begun: a step takes the cube of the folded channels."""
_OPEN, _FARTHEST = 2.0, 4.0  # logits


def fitted_starts(
    survey: Survey, site: SlimSite, channels: Sequence[int], begins: Starts, options: SlimConvOptions
) -> tuple[Starts, tuple[float, ...]] | None:
    """The start that images speak for, and the attention's; ``None`` where there are no statistics of what the convolution reads.

    Args:
        survey: of the network, with statistics or without.
        site: the convolution.
        channels: those of its input channels that are left.
        begins: the start that the weights speak for, for its sizes and where the choice of filters is not free.
        options: the recipe's.
    """
    conv = survey.original.get_submodule(path_of(site.layer))
    readers = demand_of(survey, [member.node for member in site.members if member.side == "in"])
    read = demand_of(survey, [site.layer])
    if read is None or not isinstance(conv, nn.Conv2d):
        return None
    if readers is not None and conv.groups == 1:
        kept = iter(most_telling(readers, len(begins.kept)))
        begins = replace(begins, paths=tuple(Start(_taken(kept, len(path.filters)), None) for path in begins.paths))
    counts = torch.ones(conv.out_channels, dtype=torch.float64) if readers is None else readers.reading.diagonal().clamp(min=0).sqrt()
    demands = [_demand(survey, site, path.filters, counts, read).of(channels) for path in begins.paths]
    orders = _orders(len(channels), options)
    weights = fitted_attention(demands, orders, options.folds) if conv.groups == 1 else _strongest(demands[0], options.folds).sigmoid()
    if conv.groups == 1:
        begins = _with_slices(begins, channels, [weights[order] for order in orders], demands, options.folds)
    return begins, tuple(round(float(weight), 4) for weight in weights)


def _taken(kept: Iterator[int], count: int) -> Indices:
    return tuple(sorted(itertools.islice(kept, count)))


def _demand(survey: Survey, site: SlimSite, filters: Indices, counts: Tensor, read: Demand) -> Demand:
    """What some of the convolution's filters make of its input."""
    counted = torch.zeros_like(counts)
    counted[list(filters)] = counts[list(filters)]
    reading = reading_of(survey, site.layer, counted)
    assert reading is not None
    return Demand(read.covariance, read.covariance @ reading @ read.covariance)


def _orders(channels: int, options: SlimConvOptions) -> list[Tensor]:
    """For every path the order in which it takes the attention's numbers (``weights`` and ``paths`` of the layer)."""
    plain = torch.arange(channels)
    interleaved = plain.reshape(options.folds, -1).T.flatten()
    bottom = {"both": plain.flip(0), "plain": plain, "flipped": plain.flip(0), "shuffled": interleaved}[options.weights]
    top = plain.flip(0) if options.weights == "flipped" else plain
    return [top, bottom, interleaved][: options.paths]


def fitted_attention(demands: Sequence[Demand], orders: Sequence[Tensor], folds: int) -> Tensor:
    """One number between 0 and 1 for each channel, under which the folded channels of all paths give most: ``[C]``, float64.

    Args:
        demands: for every path, what its filters read of the channels.
        orders: for every path, the order in which it takes the numbers: ``[C]``.
        folds: ``m``; channel ``i`` is folded onto channel ``i - C / m``.
    """
    logits = _strongest(demands[0], folds).requires_grad_()
    steps = max(STEPS[0], min(STEPS[1], int(_WORK / (len(logits) // folds) ** 3)))
    total = sum(float(demand.worth.sum()) for demand in demands) or 1.0
    optimizer = torch.optim.Adam([logits], RATE)
    with torch.enable_grad():
        for _ in range(steps):
            weights = logits.sigmoid()
            given = torch.stack([_given(_folded(demand, weights[order], folds)) for demand, order in zip(demands, orders, strict=True)])
            optimizer.zero_grad()
            (-given.sum() / total).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                logits.clamp_(-_FARTHEST, _FARTHEST)
    return logits.detach().sigmoid()


def _strongest(demand: Demand, folds: int) -> Tensor:
    """Logits that are open for the channel that gives most of those that fold onto each other, and shut for the others: ``[C]``."""
    worth = demand.worth.reshape(folds, -1)
    strongest = torch.zeros_like(worth).scatter_(0, worth.argmax(0, keepdim=True), 1.0)
    return ((2 * strongest - 1) * _OPEN).flatten()


def _given(demand: Demand) -> Tensor:
    given: Tensor = torch.linalg.solve(demand.covariance, demand.wanted).diagonal().sum()
    return given


def _folded(demand: Demand, weights: Tensor, folds: int) -> Demand:
    """The demand on folded channels: ``[C, C] -> [C / m, C / m]``."""
    by_run = weights.reshape(folds, -1, 1)

    def fold(matrix: Tensor) -> Tensor:
        return (by_run * matrix.reshape(folds, by_run.shape[1], -1)).sum(0)

    return Demand(fold(fold(demand.covariance).T), fold(fold(demand.wanted).T))


def _with_slices(begins: Starts, channels: Sequence[int], weights: Sequence[Tensor], demands: Sequence[Demand], folds: int) -> Starts:
    """The start with what ``reduce`` selects, and for each folded channel the slice of the channel that gives it most."""
    selections = tuple(
        tuple(sorted(most_telling(_folded(demand, weight, folds), len(selection))))
        for demand, weight, selection in zip(demands[1:], weights[1:], begins.selections, strict=True)
    )
    size = len(channels) // folds
    paths = []
    for path, folded, weight, demand in zip(begins.paths, (range(size), *selections), weights, demands, strict=True):
        strength = (weight.square() * demand.worth).reshape(folds, -1)
        slices = tuple(channels[int(strength[:, i].argmax()) * size + i] for i in folded)
        paths.append(Start(path.filters, tuple(slices for _ in path.filters)))
    return Starts(tuple(paths), selections)
