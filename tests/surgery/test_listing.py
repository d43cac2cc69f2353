"""Lists of places: alike ones together."""

from __future__ import annotations

import pytest

from chansurg.surgery.listing import alike, by_reason


def test_reasons_that_differ_in_a_place_go_together_and_others_do_not() -> None:
    skipped = [(f"b.{i}.conv", f"its channels go through cat at b.{i}:torch.cat") for i in range(4)]
    skipped += [("stem", "it is the stem"), ("a", "8 does not divide its 12 channels"), ("b", "8 does not divide its 20 channels")]
    assert by_reason(skipped) == {
        "its channels go through cat at b.0:torch.cat (or 3 others like it)": ["b.0.conv", "b.1.conv", "b.2.conv", "b.3.conv"],
        "it is the stem": ["stem"],
        "8 does not divide its 12 channels": ["a"],
        "8 does not divide its 20 channels": ["b"],
    }
    assert len(by_reason(skipped, exact=True)) == 7
    assert next(iter(by_reason(skipped[:1]))) == skipped[0][1]


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["layer2.1", "layer2.3"], "layer2.1, layer2.3"),
        (["layer2.0", "layer2.1"], "layer2.0, layer2.1"),
        (["layer1.0", "layer1.1", "layer1.2"], "layer1.0 … layer1.2"),
        (["layer1.0", "layer1.2", "layer1.4"], "layer1.0 and 2 more"),
        (["a.0", "b.1", "c.2"], "a.0 and 2 more"),
        (["one", "two", "three"], "one and 2 more"),
    ],
)
def test_only_what_follows_one_another_looks_like_a_range(paths: list[str], told: str) -> None:
    assert alike(paths) == told
