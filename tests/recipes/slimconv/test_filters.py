"""Which filters and slices a slim convolution starts with."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from chansurg.recipes.slimconv.filters import Starts, starts


def chosen(conv: nn.Conv2d, folds: int = 2, paths: int = 2, channels: tuple[int, ...] | None = None) -> Starts:
    channels = tuple(range(conv.in_channels)) if channels is None else channels
    depthwise = conv.groups == conv.in_channels
    return starts(
        conv, channels, len(channels) if depthwise else conv.out_channels, len(channels) if depthwise else conv.groups, folds, paths
    )


def weighted(conv: nn.Conv2d, filters: list[float], slices: list[float]) -> nn.Conv2d:
    """The convolution with the norm of each filter's each slice the product of two numbers."""
    with torch.no_grad():
        conv.weight.copy_((torch.tensor(filters)[:, None] * torch.tensor(slices)).reshape(*conv.weight.shape[:2], 1, 1))
    return conv


def test_the_strongest_filters_go_to_the_top_path_and_the_next_to_the_bottom_one() -> None:
    conv = weighted(nn.Conv2d(4, 8, 3), [1, 8, 3, 6, 5, 4, 7, 2], [1, 3, 2, 1])
    found = chosen(conv)
    top, bottom = found.paths
    assert top.filters == (1, 3, 4, 6)
    assert bottom.filters == (2, 5)
    assert found.kept == (1, 3, 4, 6, 2, 5)
    # Channels 0 and 2 fold onto each other, and so do 1 and 3; of each pair the stronger slice stays.
    assert set(top.slices or ()) == {(2, 1)}
    # The bottom path sees the folded channel with the strongest slice, which is the second.
    assert found.selections == ((1,),)
    assert set(bottom.slices or ()) == {(1,)}


def test_a_third_path_takes_what_the_others_left() -> None:
    conv = weighted(nn.Conv2d(4, 8, 3), [1, 8, 3, 6, 5, 4, 7, 2], [1, 3, 2, 1])
    found = chosen(conv, paths=3)
    assert found.kept == (1, 3, 4, 6, 2, 5, 0, 7)
    assert found.selections == ((1,), (0,))
    assert set(found.paths[2].slices or ()) == {(2,)}


def test_a_depthwise_filter_stays_with_its_channel() -> None:
    conv = weighted(nn.Conv2d(8, 8, 3, groups=8), [1, 2, 3, 4, 5, 1, 9, 1], [1])
    found = chosen(conv)
    top, bottom = found.paths
    # Channel i folds onto i + 4: the pairs are (0, 4), (1, 5), (2, 6), (3, 7). The top path takes the stronger filter of each.
    assert top.filters == (4, 1, 6, 3)
    assert found.selections == ((0, 2),)
    assert bottom.filters == (0, 2)


def test_a_filter_of_a_group_serves_where_its_channels_are() -> None:
    """Every slice of every filter that is kept reads a channel that its filter read before."""
    for groups, folds, paths in itertools.product((1, 2, 4, 8), (2, 4), (2, 3)):
        conv = nn.Conv2d(32, 32, 3, groups=groups)
        found = chosen(conv, folds, paths)
        assert len(set(found.kept)) == len(found.kept)
        size, in_group, out_group = 32 // folds, 32 // groups, 32 // groups
        selections = [tuple(range(size)), *found.selections]
        for path, folded in zip(found.paths, selections, strict=True):
            assert path.slices is not None, (groups, folds, paths)
            inputs = len(path.slices[0])
            groups_of_path = len(folded) // inputs
            for row, (filter_, slices) in enumerate(zip(path.filters, path.slices, strict=True)):
                group = row // (len(path.filters) // groups_of_path)
                seen = [filter_ // out_group * in_group + position for position in slices]
                assert [channel % size for channel in seen] == list(folded[group * inputs : (group + 1) * inputs])


def test_where_no_filter_sees_the_right_channels_the_paths_start_at_random() -> None:
    # The bottom path has one group, and sees the folded channels 0, 1, 2, 3 and 5: the last of them is of another group than the others.
    conv = weighted(nn.Conv2d(20, 20, 3, groups=4), [1] * 20, [5, 1, 1, 1, 1])
    found = chosen(conv)
    assert found.selections == ((0, 1, 2, 3, 5),)
    assert [path.slices for path in found.paths] == [None, None]
    assert found.kept == tuple(range(15))


def test_channels_that_an_earlier_site_left_are_folded_in_their_order() -> None:
    conv = weighted(nn.Conv2d(8, 4, 3), [1, 2, 3, 4], [1, 1, 1, 1, 1, 1, 1, 9])
    found = chosen(conv, channels=(6, 1, 7, 3))
    assert set(found.paths[0].slices or ()) == {(7, 1)}


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_equal_filters_and_a_network_without_numbers_give_the_first(groups: int) -> None:
    with torch.device("meta"):
        empty = nn.Conv2d(16, 16, 3, groups=groups)
    equal = nn.Conv2d(16, 16, 3, groups=groups)
    nn.init.ones_(equal.weight)
    assert chosen(empty) == chosen(equal)
    if groups == 1:
        assert chosen(empty).kept == tuple(range(12))
