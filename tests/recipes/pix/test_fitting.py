"""Subsets that are fitted to what reads them, against every partition there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from chansurg.recipes.pix.fitting import fitted_subsets, in_slots
from chansurg.recipes.pix.partition import partition
from chansurg.surgery.demand import Demand


def demand(channels: int, seed: int) -> Demand:
    generator = torch.Generator().manual_seed(seed)
    root, weight = torch.randn(2, channels, channels, dtype=torch.float64, generator=generator)
    covariance = root @ root.T / channels + 0.1 * torch.eye(channels)
    return Demand(covariance, covariance @ weight.T @ weight @ covariance)


def given(demand: Demand, subsets: list[list[int]]) -> float:
    sums = torch.zeros(len(demand.covariance), len(subsets), dtype=torch.float64)
    for column, subset in enumerate(subsets):
        sums[subset, column] = 1
    return float(demand.given(sums))


def pairings(channels: list[int]) -> Iterator[list[list[int]]]:
    if not channels:
        yield []
        return
    first, *others = channels
    for second in others:
        for rest in pairings([channel for channel in others if channel != second]):
            yield [[first, second], *rest]


@pytest.mark.parametrize("seed", range(6))
def test_pairs_are_close_to_the_best_there_are(seed: int) -> None:
    wanted = demand(8, seed)
    values = sorted(given(wanted, pairs) for pairs in pairings(list(range(8))))
    found = fitted_subsets(wanted, 4, 2)
    assert sorted(channel for pair in found for channel in pair) == list(range(8))
    assert given(wanted, found) >= values[-5]


@pytest.mark.parametrize(("channels", "outputs", "zeta"), [(12, 4, 3), (10, 4, 3), (11, 4, None), (7, 7, 1), (9, 1, None)])
def test_sizes_are_those_of_contiguous_subsets_and_no_swap_is_left(channels: int, outputs: int, zeta: int | None) -> None:
    wanted = demand(channels, 0)
    plain = partition(channels, outputs, zeta, "contiguous")
    found = fitted_subsets(wanted, outputs, zeta)
    assert [len(subset) for subset in found] == [len(subset) for subset in plain]
    assert partition(channels, outputs, zeta, found) == found
    best = given(wanted, found)
    assert best >= given(wanted, plain)
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            for a in range(len(one)):
                for b in range(len(other)):
                    one[a], other[b] = other[b], one[a]
                    assert given(wanted, found) <= best * (1 + 1e-5)
                    one[a], other[b] = other[b], one[a]


def test_a_subset_takes_the_place_of_the_output_that_it_tells_of() -> None:
    """Each of four sources shows in three channels, and the outputs that were there stood for the sources in another order."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2000, 4, dtype=torch.float64, generator=generator)
    channels = sources[:, [0, 1, 2, 3] * 3] + 0.1 * torch.randn(2000, 12, dtype=torch.float64, generator=generator)
    outputs = sources[:, [2, 0, 3, 1]]
    cross = (channels - channels.mean(0)).T @ (outputs - outputs.mean(0)) / 2000
    covariance = torch.cov(channels.T)
    by_source = [[source, source + 4, source + 8] for source in range(4)]
    assert [subset[0] for subset in in_slots(by_source, Demand(covariance, covariance), cross)] == [2, 0, 3, 1]
    # A short subset stays last, whatever it tells of.
    assert [len(subset) for subset in in_slots([[0, 4], [1, 5], [2]], Demand(covariance, covariance), cross[:, :3])] == [2, 2, 1]


def test_the_same_demand_gives_the_same_subsets() -> None:
    assert fitted_subsets(demand(20, 3), 5, None) == fitted_subsets(demand(20, 3), 5, None)
