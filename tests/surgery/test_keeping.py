"""Which filters and slices stay where a layer becomes smaller."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chansurg.surgery.demand import Demand
from chansurg.surgery.keeping import filter_norms, most_telling, slice_norms, strongest, strongest_of_each


@pytest.mark.parametrize(
    ("norms", "width", "groups", "kept"),
    [
        ([3.0, 1.0, 4.0, 1.5], 2, 1, (0, 2)),
        ([1.0, 1.0, 1.0, 1.0], 2, 1, (0, 1)),
        ([9.0, 8.0, 1.0, 2.0], 2, 2, (0, 3)),
        (None, 3, 1, (0, 1, 2)),
        (None, 2, 2, (0, 2)),
    ],
)
def test_the_strongest_stay_in_their_order_and_ties_go_to_the_first(
    norms: list[float] | None, width: int, groups: int, kept: tuple[int, ...]
) -> None:
    assert strongest([None if norms is None else torch.tensor(norms)], width, 4, groups) == kept


def test_several_readers_vote_with_their_squares() -> None:
    assert strongest([torch.tensor([3.0, 0.0, 2.5]), torch.tensor([0.0, 1.0, 2.0])], 1, 3, 1) == (2,)


def test_the_strongest_of_each_subset() -> None:
    assert strongest_of_each(torch.tensor([1.0, 5.0, 2.0, 2.0]), [[0, 1], [2, 3]]) == (1, 2)
    assert strongest_of_each(None, [[0, 1], [2, 3]]) == (0, 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_norms_of_filters_and_of_input_slices(groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, groups=groups)
    with torch.no_grad():
        for i in range(4):
            one = torch.zeros(1, 4, 1, 1)
            one[0, i] = 1
            found = nn.functional.conv2d(one, conv.weight, padding=2, groups=groups).norm()
            assert torch.isclose(slice_norms(conv)[i], found)
    assert torch.allclose(filter_norms(conv), torch.stack([row.norm() for row in conv.weight.detach()]))
    with torch.device("meta"):
        empty = nn.Conv2d(4, 6, 3)
    assert filter_norms(empty) is None
    assert slice_norms(empty) is None


def test_what_is_told_twice_is_kept_once() -> None:
    """Channel 1 is nearly a copy of channel 0, and the strongest slices are those of the two."""
    generator = torch.Generator().manual_seed(0)
    channels = torch.randn(1000, 4, dtype=torch.float64, generator=generator)
    channels[:, 1] = channels[:, 0] + 0.05 * channels[:, 1]
    covariance = torch.cov(channels.T)
    reading = torch.diag(torch.tensor([4.0, 3.9, 1.0, 0.5], dtype=torch.float64))
    demand = Demand(covariance, covariance @ reading @ covariance)
    assert set(most_telling(demand, 2)) in ({0, 2}, {1, 2})
    assert strongest([torch.tensor([4.0, 3.9, 1.0, 0.5])], 2, 4, 1) == (0, 1)
    assert sorted(most_telling(demand, 4)) == [0, 1, 2, 3]
    assert sorted(most_telling(demand, 2, groups=2))[1] == 2


def test_the_most_telling_come_first_and_each_adds_what_it_can() -> None:
    root = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    covariance, reading = root @ root.T + torch.eye(8), root.T @ root
    demand = Demand(covariance, covariance @ reading @ covariance)
    every = torch.eye(8, dtype=torch.float64)
    kept = most_telling(demand, 4)
    for place in range(4):
        given = [float(demand.given(every[:, [*kept[:place], channel]])) for channel in range(8) if channel not in kept[:place]]
        assert float(demand.given(every[:, list(kept[: place + 1])])) == pytest.approx(max(given))


def test_channels_that_never_vary_come_last() -> None:
    covariance = torch.diag(torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64))
    assert most_telling(Demand(covariance, covariance @ covariance), 3) == (3, 1, 0)
