"""What a user can choose, and what is told of a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from chansurg.recipes.mod.options import ModOptions
from chansurg.surgery.errors import InputError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"c": "64"}, {"c": 64}),
        ({"c": 1}, {"c": 1}),
        ({"blocks": "4,2,4"}, {"blocks": "2,4"}),
        ({"blocks": [3]}, {"blocks": "3"}),
        ({"blocks": 6}, {"blocks": "6"}),
        ({"stages": (3, 2)}, {"stages": "2,3"}),
        ({"depths": (3, 4, 18, 3)}, {"depths": "3,4,18,3"}),
        ({"depths": " 3, 4", "grow": "identity"}, {"depths": "3,4", "grow": "identity"}),
    ],
)
def test_values_are_kept_as_plain_data(given: dict[str, Any], kept: dict[str, Any]) -> None:
    options = ModOptions(**given)
    assert {name: getattr(options, name) for name in kept} == kept


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"c": 0}, "--c"),
        ({"c": "1/2"}, "--c"),
        ({"c": "4,5"}, "--c"),
        ({"c": True}, "--c"),
        ({"c": 10**5000}, "--c"),
        ({"c": "1" + 5000 * "0"}, "--c"),
        ({"blocks": "every"}, "--blocks"),
        ({"blocks": "1,2"}, "--blocks"),
        ({"blocks": ""}, "--blocks"),
        ({"blocks": None}, "--blocks"),
        ({"stages": "0"}, "--stages"),
        ({"stages": "2;3"}, "--stages"),
        ({"depths": "3,4,x"}, "--depths"),
        ({"depths": ()}, "--depths"),
        ({"select": "best"}, "--select"),
        ({"fuse": "middle"}, "--fuse"),
        ({"grow": "random", "depths": "3"}, "--grow"),
        ({"grow": "identity"}, "--grow"),
    ],
)
def test_mistakes_are_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as caught:
        ModOptions(**given)
    assert named in caught.value.what
    assert len(str(caught.value)) < 500
    assert all(caught.value.parts().values())


@pytest.mark.parametrize(("blocks", "taken"), [("alternate", [2, 4, 6, 8]), ("all", [2, 3, 4, 5, 6, 7, 8]), ("3,4,9", [3, 4])])
def test_which_blocks_are_taken(blocks: str, taken: list[int]) -> None:
    assert [number for number in range(1, 9) if ModOptions(blocks=blocks).takes_block(number)] == taken
