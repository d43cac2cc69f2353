"""--only and --skip: which sites a pattern stands for, and what is said where it stands for none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import small

import chansurg
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import installed_recipes
from chansurg.surgery.selecting.patterns import named
from chansurg.surgery.survey import survey

PATHS = ("layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer12.0.conv1")
FULL = Plan("pix", 1, {}, tuple(Site(path, "squeeze") for path in PATHS), (), (Skip("layer4.0.conv1", "it is the stem"),))
SIZE = (3, 32, 32)


@pytest.mark.parametrize(
    ("only", "skip", "left"),
    [
        (["layer1"], [], PATHS[:2]),
        (["layer1.*"], [], PATHS[:2]),
        (["layer1*"], [], (*PATHS[:2], PATHS[3])),
        (["*.0.conv1"], [], (PATHS[0], *PATHS[2:])),
        (["layer2.0", "layer12"], [], PATHS[2:]),
        ([], ["layer1"], PATHS[2:]),
        (["layer[12].*"], ["layer1.1"], (PATHS[0], PATHS[2])),
        (["*"], ["*"], ()),
    ],
)
def test_patterns_name_sites_and_the_modules_around_them(only: list[str], skip: list[str], left: tuple[str, ...]) -> None:
    chosen = named(FULL, only, skip)
    assert [path for path in PATHS if chosen.reason_against(path) is None] == list(left)
    told = {chosen.reason_against(path) for path in PATHS} - {None}
    assert told <= {"--only does not name it", "--skip names it"}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("layer2.0.conv2", "Near to it: layer2.0.conv1"), ("layer4", "layer4.0.conv1 is none: it is the stem"), ("zzz", "matches no site")],
)
def test_a_pattern_that_matches_nothing_is_an_error_that_helps(pattern: str, told: str) -> None:
    for option, patterns in (("--only", ([pattern], [])), ("--skip", ([], ["layer1", pattern]))):
        with pytest.raises(chansurg.InputError) as refused:
            named(FULL, *patterns)
        assert told in refused.value.what
        assert refused.value.where == f"option {option} {pattern}"
        assert "layer1.0.conv1" in refused.value.to_do


RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("pix", {}),
    ("pix", {"mode": "downscale"}),
    ("mod", {"blocks": "all"}),
    ("slimconv", {}),
    ("pcs", {}),
]


@pytest.mark.parametrize(("recipe", "options"), RECIPES)
def test_every_recipe_converts_the_chosen_sites_only(recipe: str, options: dict[str, Any]) -> None:
    network = small.small().eval()
    found, at_work = survey(network, SIZE), installed_recipes()[recipe]
    values = at_work.options(options)
    paths = [site.path for site in at_work.plan(found, values, EVERY).sites]
    assert len(set(paths)) == len(paths) > 0
    for path in paths:
        alone = at_work.plan(found, values, Chosen(frozenset((path,)), dict.fromkeys(paths, "not wanted")))
        assert [site.path for site in alone.sites] == [path]
        assert {skip.path for skip in alone.skipped if skip.reason == "not wanted"} == {*paths} - {path}
        assert chansurg.apply(network, alone, input_size=SIZE)(torch.randn(2, *SIZE)).shape == (2, 5)
    assert at_work.plan(found, values, Chosen(frozenset())).edits == ()


def test_skipping_everything_is_refused_with_the_reason() -> None:
    with pytest.raises(chansurg.Refusal, match="--skip names it: blocks"):
        chansurg.plan(small.small(), "pix", skip=["*"], input_size=SIZE)
