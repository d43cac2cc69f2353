"""What a user may ask of PCS, as a text from a command line or as a value from Python."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import pytest

import chansurg
from chansurg.recipes.pcs.options import PcsOptions


def test_the_defaults_are_the_papers() -> None:
    assert asdict(PcsOptions()) == {
        "shrink": "1/2",
        "lambda_base": 6e-6,
        "alpha": 0.1,
        "selection": "running",
        "method": "shrinking",
        "closing": 0.25,
    }


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"shrink": "0"}, {"shrink": "0"}),
        ({"shrink": "3/4"}, {"shrink": "3/4"}),
        ({"shrink": 0.25}, {"shrink": "1/4"}),
        ({"shrink": "0.4"}, {"shrink": "2/5"}),
        ({"shrink": Fraction(1, 3)}, {"shrink": "1/3"}),
        ({"lambda_base": "A"}, {"lambda_base": 4e-6}),
        ({"lambda_base": "C"}, {"lambda_base": 8e-6}),
        ({"lambda_base": "6e-5"}, {"lambda_base": 6e-5}),
        ({"lambda_base": 0}, {"lambda_base": 0.0}),
        ({"alpha": "0.5"}, {"alpha": 0.5}),
        ({"closing": "0"}, {"closing": 0.0}),
        ({"method": "truncation"}, {"lambda_base": 6e-6}),
    ],
)
def test_texts_and_numbers_mean_the_same(given: dict[str, Any], taken: dict[str, Any]) -> None:
    options = PcsOptions(**given)
    assert {name: getattr(options, name) for name in taken} == taken
    assert PcsOptions(**json.loads(json.dumps(asdict(options)))) == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("shrink", value) for value in ("1", 1, -0.1, "-1/4", "1/0", "half", "nan", float("inf"), None, 10**400)),
        *(("lambda_base", value) for value in ("D", -1, "nan", "inf", True, "")),
        *(("alpha", value) for value in (0, 1.5, "x", "nan", False)),
        *(("closing", value) for value in (1, -0.1, "x", None)),
        ("selection", "random"),
        ("method", "lasso"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_option(name: str, value: object) -> None:
    with pytest.raises(chansurg.InputError, match=f"is not a value of --{name.replace('_', '-')}") as refused:
        PcsOptions(**{name: value})
    assert len(str(refused.value)) < 500


def test_a_rate_that_truncation_has_no_use_for_is_refused() -> None:
    with pytest.raises(chansurg.InputError, match="is not a value of --lambda-base"):
        PcsOptions(method="truncation", lambda_base="A")
