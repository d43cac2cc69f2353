from __future__ import annotations

import copy

import pytest
import torch
from networks.small import Small, small
from torch import nn

import chansurg
from chansurg.surgery.delivery.sites import find_places
from chansurg.surgery.errors import InputError

SHAPE = (2, 3, 32, 32)


def test_equal_networks_have_no_places() -> None:
    assert find_places(small(), small(), SHAPE) == []


def test_a_part_that_gave_way_in_its_place_is_the_place() -> None:
    changed = small()
    changed.blocks[1].conv2 = nn.Conv2d(8, 8, 5, padding=2, bias=False)
    (place,) = find_places(changed, small(), SHAPE)
    assert (place.path, place.kind, place.inputs) == ("blocks.1.conv2", "Conv2d", ((2, 8, 16, 16),))


def test_a_rewritten_block_is_one_place_and_what_it_takes_is_told() -> None:
    original = small().eval()
    found = find_places(chansurg.convert(original, "pix", input_size=(3, 32, 32)), original, SHAPE)
    assert [place.path for place in found] == ["blocks.0", "blocks.1"]
    assert found[1].inputs == ((2, 32, 16, 16),)


def test_narrower_parts_belong_to_the_block_around_them() -> None:
    changed = small()
    block = changed.blocks[2]
    block.conv1, block.bn1, block.conv2 = nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 32, 3, padding=1)
    assert [place.path for place in find_places(changed, small(), SHAPE)] == ["blocks.2"]


def test_a_network_that_differs_as_a_whole_has_no_places() -> None:
    assert find_places(Small(5, 4), Small(5, 8), SHAPE) == []


def test_what_needs_numbers_is_refused_with_the_reason() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean((2, 3))) * int(x.sum().item() > 0)

    with pytest.raises(InputError, match="does not run on shapes alone"):
        find_places(Counting(), copy.deepcopy(Counting()), SHAPE)
