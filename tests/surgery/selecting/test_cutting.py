"""Where to cut: which sites are taken under which limits, and what is said where none will do."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.drifting import noise
from chansurg.surgery.edits import Address, Attach, LayerSpec
from chansurg.surgery.plan import Plan, Site
from chansurg.surgery.selecting.cutting import Cutting
from chansurg.surgery.selecting.limits import Limits
from chansurg.surgery.selecting.trade import Choice
from chansurg.surgery.selecting.trials import Paths

SIZE = (3, 32, 32)
SITES = {"a": (100, 0.3), "b": (200, 0.2), "c": (50, 0.01), "d": (150, 0.6), "e": (-10, 0.0)}
"""What each saves of 1,000, and how far it drifts; in the order of drift for what it saves: c, b, a, d."""


WRONG_KINDS: tuple[dict[str, Any], ...] = ({"max_blocks": 1.5}, {"max_blocks": "2"}, {"target_macs": "0.5"}, {"keep_drift": True})


class Trials:
    """Trials of sites whose savings and squared drifts add up."""

    def __init__(self, sites: dict[str, tuple[int, float | None]], at_first: int = 1000) -> None:
        self.sites, self.now, self.at_first = sites, 1000, at_first
        self.inputs, self.is_calibrated = noise(SIZE, 4), False
        self._known: dict[Paths, float | None] = {}

    @property
    def known(self) -> Set[Paths]:
        return self._known.keys()

    def macs(self, paths: Paths) -> int:
        return self.now - sum(self.sites[path][0] for path in paths)

    def share(self, paths: Paths) -> float:
        return self.macs(paths) / self.at_first

    def drift(self, paths: Paths) -> float | None:
        drifts = [self.sites[path][1] for path in paths]
        self._known[paths] = None if None in drifts else sum(drift**2 for drift in drifts if drift) ** 0.5
        return self._known[paths]


def cut(sites: dict[str, tuple[int, Any]] = SITES, *, at_first: int = 1000, gates: bool = False, **limits: Any) -> Choice:
    here = Address("", "self.a")
    edits = (Attach(here, here, "gate", LayerSpec("pcs.SalienceGate", {})),) if gates else ()
    full = Plan("testing", 1, {}, tuple(Site(path, "site") for path in sites), edits)
    chosen, choice = Cutting(full, Trials(sites, at_first), Limits(**limits)).choose()  # type: ignore[arg-type]
    assert chosen.paths == {site.path for site in choice.sites if site.taken}
    assert all(chosen.reason_against(site.path) for site in choice.sites if not site.taken)
    return choice


def taken(choice: Choice) -> str:
    return "".join(site.path for site in choice.sites if site.taken)


@pytest.mark.parametrize(
    ("limits", "sites"),
    [
        ({"max_blocks": 1}, "c"),
        ({"max_blocks": 3}, "cba"),
        ({"max_blocks": 9}, "cbad"),
        ({"keep_drift": 0.01}, "c"),
        ({"keep_drift": 0.2}, "c"),
        ({"keep_drift": 0.21}, "cb"),
        ({"keep_drift": 0.25, "max_blocks": 2}, "cb"),
        ({"keep_drift": 9.0}, "cbad"),
        ({"keep_drift": 9.0, "max_blocks": 2}, "cb"),
        ({"target_macs": 0.95}, "c"),
        ({"target_macs": 0.8}, "b"),  # c comes first, and is not needed beside b
        ({"target_macs": 0.7}, "ba"),
        ({"target_macs": 0.65}, "cba"),
        ({"target_macs": 0.65, "max_blocks": 2}, "bd"),  # the cheapest two do not come so far
        ({"target_macs": 0.7, "keep_drift": 0.4}, "ba"),
    ],
)
def test_the_cheapest_sites_are_taken(limits: dict[str, Any], sites: str) -> None:
    choice = cut(**limits)
    assert taken(choice) == sites
    assert choice.asked == limits
    assert choice.macs == 1 - sum(SITES[path][0] for path in sites) / 1000
    assert choice.drift == pytest.approx(sum(SITES[path][1] ** 2 for path in sites) ** 0.5)
    assert [site.path for site in choice.sites] == ["c", "b", "a", "d", "e"]
    assert choice.sites[-1].reason == "it saves nothing"
    assert not choice.sites[-1].taken


def test_a_site_that_breaks_the_bound_alone_stands_in_nobody_s_way() -> None:
    sites = {"a": (900, 0.3), "b": (10, 0.05), "c": (10, 0.06)}  # in the order of drift for what it saves
    assert taken(cut(sites, keep_drift=0.1)) == "bc"
    choice = cut(sites, keep_drift=0.1, max_blocks=1)
    assert taken(choice) == "b"
    assert ["further" in site.reason for site in choice.sites] == [True, False, False]


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"target_macs": 0.4}, "the best is 0.500"),
        ({"target_macs": 0.6, "max_blocks": 2}, "the best is 0.650"),
        ({"keep_drift": 0.005}, "the least drift is 0.01, at c"),
        ({"target_macs": 0.7, "keep_drift": 0.21}, "--keep-drift 0.21 allows 0.750"),
        ({"target_macs": 0.7, "keep_drift": 0.001}, "allows no site at all"),
    ],
)
def test_impossible_limits_are_refused_with_the_best_there_is(limits: dict[str, Any], told: str) -> None:
    with pytest.raises(chansurg.Refusal) as refused:
        cut(**limits)
    assert told in refused.value.what


def test_a_target_that_is_met_and_limits_out_of_range() -> None:
    with pytest.raises(chansurg.InputError, match=r"is met: the network costs 0\.500"):
        cut(target_macs=0.6, at_first=2000)
    for limits in ({"max_blocks": 0}, {"max_blocks": True}, {"target_macs": 1.0}, {"target_macs": 0.0}, {"keep_drift": -0.1}, *WRONG_KINDS):
        with pytest.raises(chansurg.InputError, match="is not a value of --"):
            Limits(**limits)  # type: ignore[arg-type]
    with pytest.raises(chansurg.InputError):
        Limits(keep_drift=float("nan"))


def test_sites_whose_outputs_are_not_finite_are_never_taken() -> None:
    sites = {"a": (100, None), "b": (50, 0.5)}
    assert taken(cut(sites, max_blocks=2)) == "b"
    with pytest.raises(chansurg.Refusal, match="not finite"):
        cut({"a": (100, None)}, max_blocks=2)


def test_where_nothing_saves_anything_the_least_drift_comes_first_and_a_target_is_refused() -> None:
    sites = {"a": (-1, 0.2), "b": (0, 0.1)}
    assert taken(cut(sites, max_blocks=1)) == "b"
    for gates, told in ((True, "chansurg finetune MODEL --data DIR --target-macs 0.9"), (False, "another recipe")):
        with pytest.raises(chansurg.Refusal) as refused:
            cut(sites, target_macs=0.9, gates=gates)
        assert told in refused.value.to_do


def network() -> nn.Module:
    torch.manual_seed(0)
    return small.small().eval()


def test_what_is_chosen_is_what_is_measured() -> None:
    model, seen = network(), []
    options: dict[str, Any] = {"mode": "downscale", "input_size": SIZE}
    planned = chansurg.plan(model, "pix", target_macs=0.8, progress=lambda done, total: seen.append((done, total)), **options)
    assert planned.choice is not None
    converted = chansurg.apply(model, planned, input_size=SIZE)
    entry = chansurg.record_of(converted).journal[-1]
    assert entry.after["macs"] / entry.before["macs"] == pytest.approx(planned.choice.macs, abs=1e-4)
    assert planned.choice.macs <= 0.8
    assert entry.results["drift"]["outputs"] == planned.choice.drift
    assert {site.path for site in planned.sites} == {site.path for site in planned.choice.sites if site.taken}
    assert entry.results["asked"] == {"target_macs": 0.8}
    assert entry.results["choice"] == planned.choice.as_json()
    alone = chansurg.convert(model, "pix", only=[planned.choice.sites[0].path], **options)
    counts = chansurg.record_of(alone).journal[-1]
    assert counts.before["macs"] - counts.after["macs"] == planned.choice.sites[0].macs_saved
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert all(done <= total for done, total in seen)
    again = chansurg.plan(model, "pix", target_macs=0.8, **options)
    assert again.as_json() == planned.as_json()


def test_the_share_is_that_of_the_original_and_not_of_what_an_earlier_conversion_left() -> None:
    once = chansurg.convert(network(), "slimconv", k="8/3", input_size=SIZE)
    share = chansurg.count(once, SIZE).macs / chansurg.count(network(), SIZE).macs
    with pytest.raises(chansurg.InputError, match="is met"):
        chansurg.plan(once, "pix", target_macs=share + 0.01, input_size=SIZE)


def test_a_network_that_grows_leaves_no_choice() -> None:
    with pytest.raises(chansurg.InputError, match="grows"):
        chansurg.plan(chansurg.load("cifar/resnet20"), "mod", depths="4,4,4", max_blocks=2)


def test_limits_on_a_recipe_that_changes_no_function() -> None:
    model = network()
    gated = chansurg.convert(model, "pcs", keep_drift=0.0, input_size=SIZE)
    results = chansurg.record_of(gated).journal[-1].results
    assert all(site["taken"] for site in results["choice"]["sites"])
    assert results["drift"]["outputs"] == 0
    assert results["asked"] == {"keep_drift": 0.0}
    with pytest.raises(chansurg.Refusal, match="none of its sites saves"):
        chansurg.convert(model, "pcs", target_macs=0.9, input_size=SIZE)
