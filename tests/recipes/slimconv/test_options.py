"""What a user may ask of SlimConv, as a text from a command line or as a value from Python."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import pytest

import chansurg
from chansurg.recipes.slimconv.options import SlimConvOptions


def test_the_defaults_are_the_papers() -> None:
    assert asdict(SlimConvOptions()) == {"k": "4/3", "floor": 1, "weights": "both", "paths": 2}


@pytest.mark.parametrize(
    ("given", "taken", "folds"),
    [
        ("4/3", "4/3", 2),
        ("2", "2", 3),
        (2, "2", 3),
        ("8/3", "8/3", 4),
        (8 / 3, "8/3", 4),
        (Fraction(10, 3), "10/3", 5),
        ("4", "4", 6),
        ("1.3333333333", "4/3", 2),
    ],
)
def test_k_is_any_number_that_folds_whole_channels(given: Any, taken: str, folds: int) -> None:
    options = SlimConvOptions(k=given)
    assert (options.k, options.folds) == (taken, folds)
    assert SlimConvOptions(**json.loads(json.dumps(asdict(options)))) == options


def test_texts_and_numbers_mean_the_same() -> None:
    assert SlimConvOptions(floor="24", paths="3") == SlimConvOptions(floor=24, paths=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("k", value) for value in ("1", "3/2", "0", "-4/3", "5/3", "two", "", "1/0", None, "2/3", "1e99", 10**400, float("nan"), True)),
        *(("floor", value) for value in (0, -1, "1.5", 2.0, "", None, True, 10**400)),
        *(("paths", value) for value in (1, 4, "two", None, True, 2.5)),
        *(("weights", value) for value in ("none", "", None, 3)),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_would_do(name: str, value: Any) -> None:
    with pytest.raises(chansurg.InputError) as refused:
        SlimConvOptions(**{name: value})
    parts = refused.value.parts()
    assert f"--{name}" in parts["what"]
    assert all(parts.values())
    assert len(str(refused.value)) < 500
