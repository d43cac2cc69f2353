"""Arguments as plain data: there and back, through JSON."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import pytest

from chansurg.surgery.forwards.arguments import TENSOR, NotPlain, build, describe, holds_tensor, is_empty, matches

VALUES: list[Any] = [
    None,
    True,
    1,
    2.5,
    "text",
    [],
    (),
    {},
    (1, [2, "a"], {"b": None}),
    OrderedDict(z=1, a=(2,)),
    [b"tensor", (b"other", 3), {"key": [b"last"]}],
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    described = json.loads(json.dumps(describe(value, bytes), sort_keys=True))  # as a file's header is written
    back = build(described, value)
    assert back == value
    assert type(back) is type(value)
    assert holds_tensor(described) == ("b'tensor'" in repr(value))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_matches_its_own_description_and_no_other(value: Any) -> None:
    matching = [other for other in VALUES if matches(other, describe(value, bytes))]
    assert matching == [value]
    assert [type(other) for other in matching] == [type(value)]


def test_the_form_of_older_files_is_read() -> None:
    value = {"a": (1, b"x"), "b": 2}
    described = {"dict": {"a": {"tuple": [1, TENSOR]}, "b": 2}}
    assert matches(value, described)
    assert build(described, value) == value


def test_anything_stands_in_a_tensors_place_and_a_constant_only_for_itself() -> None:
    size = describe((b"height", b"width", 2), bytes)
    assert matches((14, 14, 2), size)
    assert not matches((14, 14, 3), size)
    assert not matches((14, 14, True), describe((14, 14, 1), bytes))
    assert not matches([14, 14, 2], size)
    assert not matches((14, 2), size)


def test_a_tensor_is_taken_from_its_place() -> None:
    described = describe([b"x", {"k": (1, b"y")}], bytes)
    assert build(described, ["first", {"k": (1, "second")}]) == ["first", {"k": (1, "second")}]
    assert describe(b"x", bytes) == TENSOR
    assert is_empty(describe((), bytes))
    assert not is_empty(described)


@pytest.mark.parametrize("value", [object(), {1: 2}, namedtuple("Pair", "a b")(1, 2), {"set"}, [object()]])
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(NotPlain):
        describe(value, bytes)
