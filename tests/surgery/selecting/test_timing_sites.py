"""convert --only-if-faster: which sites are taken for which times, and that the times are those of the sites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import chansurg
from chansurg.surgery.delivery.benchmark import Benchmark, LayerRow, Row, Setting, Side
from chansurg.surgery.delivery.timing import Ratio, Spread
from chansurg.surgery.selecting import timing_sites
from chansurg.surgery.selecting.timed import Where

SETTING = Setting("eager", "cpu", "float32", (3, 32, 32), 1)


def side(milliseconds: float) -> Side:
    return Side(Spread(milliseconds / 1e3, milliseconds / 1e3, milliseconds / 1e3), "contiguous", {}, None)


def layer(path: str, before: float, after: float, sure: float = 1.01) -> LayerRow:
    """A module timed at so many milliseconds, with an interval of the ratio that reaches as far to either side."""
    value = before / after
    return LayerRow(
        path, "Conv2d", [(1, 8, 4, 4)], Row(SETTING, None, side(after), side(before), Ratio(value, value / sure, value * sure), 10)
    )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the benchmark give these rows; what it was asked for is kept."""

    def give(*layers: LayerRow, reason: str | None = None) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def bench(*networks: object, **settings: Any) -> Benchmark:
            asked.update(settings)
            return Benchmark([Row(SETTING, reason=reason)], layers, {"cpu": {}}, 2, True)

        monkeypatch.setattr(timing_sites, "bench", bench)
        return asked

    return give


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return chansurg.load("cifar/resnet20")


def taken(plan: chansurg.Plan) -> set[str]:
    return {site.path for site in plan.sites}


LAYER1 = ("layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1")


def test_only_what_is_faster_for_sure_is_converted(network: torch.nn.Module, timed: Any) -> None:
    asked = timed(layer("layer1.0", 2.0, 1.0), layer("layer1.1", 1.0, 1.5), layer("layer1.2", 1.02, 1.0, sure=1.05))
    plan = chansurg.plan(network, "pix", mode="downscale", only="layer1.*.conv1", only_if_faster=True, runtime="compile", batch_size=8)
    assert taken(plan) == {"layer1.0.conv1"}
    assert (asked["runtimes"], asked["batch_sizes"], asked["input_sizes"]) == (["compile"], [8], [(3, 32, 32)])
    reasons = {skip.path: skip.reason for skip in plan.skipped}
    assert reasons["layer1.1.conv1"] == "it is slower here"
    assert reasons["layer1.2.conv1"] == "it is no faster here, for all that can be told"
    assert plan.asked == {"only": ["layer1.*.conv1"], "only_if_faster": True, "runtime": "compile", "batch_size": 8}
    assert plan.timing is not None
    assert [(site.path, site.module, site.before_ms, site.after_ms) for site in plan.timing.sites] == [
        ("layer1.0.conv1", "layer1.0", 2.0, 1.0),
        ("layer1.1.conv1", "layer1.1", 1.0, 1.5),
        ("layer1.2.conv1", "layer1.2", 1.02, 1.0),
    ]


def test_modules_in_a_site_are_taken_together(network: torch.nn.Module, timed: Any) -> None:
    timed(layer("layer1.0.conv1.a", 2.0, 1.0), layer("layer1.0.conv1.b", 1.0, 1.5), layer("layer1.10", 1.0, 9.0))
    plan = chansurg.plan(network, "pix", mode="downscale", only="layer1.0.conv1", only_if_faster=True)
    assert plan.timing is not None
    (site,) = plan.timing.sites
    assert (site.module, site.before_ms, site.after_ms, site.faster) == ("layer1.0.conv1.a, layer1.0.conv1.b", 3.0, 2.5, True)


@pytest.mark.parametrize(
    ("layers", "reason", "told"),
    [
        (
            [layer("layer1", 1.0, 2.0)],
            None,
            "it is slower here: layer1.0.conv1 (1.000 -> 2.000 ms), layer1.1.conv1 (1.000 -> 2.000 ms), layer1.2",
        ),
        ([], "there is no C++ compiler", "it could not be timed: there is no C++ compiler"),
        ([], None, "it could not be timed: no module around it takes and gives the same shapes before and after"),
    ],
)
def test_where_nothing_gains_nothing_is_converted(network: torch.nn.Module, timed: Any, layers: Any, reason: Any, told: str) -> None:
    timed(*layers, reason=reason)
    with pytest.raises(chansurg.Refusal, match="found no site") as error:
        chansurg.plan(network, "pix", mode="downscale", only="layer1.*.conv1", only_if_faster=True)
    assert told in str(error.value)


def test_limits_choose_among_those_that_gain(network: torch.nn.Module, timed: Any) -> None:
    timed(layer("layer1.0", 2.0, 1.0), layer("layer1.1", 2.0, 1.0), layer("layer1.2", 1.0, 2.0))
    plan = chansurg.plan(network, "pix", mode="downscale", only="layer1.*.conv1", only_if_faster=True, max_blocks=1)
    assert len(taken(plan) & set(LAYER1[:2])) == len(taken(plan)) == 1
    assert plan.choice is not None
    assert {site.path for site in plan.choice.sites} == set(LAYER1[:2])


@pytest.mark.parametrize("wrong", [{"runtime": "tensorrt"}, {"batch_size": 0}, {"batch_size": True}])
def test_what_nothing_can_be_timed_in_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(chansurg.InputError, match="is not a value of"):
        Where(**wrong)


def test_what_is_timed_is_what_is_converted(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times are real here; which of them count as faster is not left to the machine."""
    monkeypatch.setattr(timing_sites, "SECONDS", 0.01)
    judge = timing_sites._site
    monkeypatch.setattr(timing_sites, "_site", lambda *given: replace(judge(*given), faster=given[0] == "layer3.1.conv1"))
    converted = chansurg.convert(network, "slimconv", k="8/3", only="layer3", only_if_faster=True)
    (entry,) = chansurg.record_of(converted).journal
    sites = entry.results["timing"]["sites"]
    assert all(site["before_ms"] > 0 and site["after_ms"] > 0 for site in sites)
    slim = {path for path, module in converted.named_modules() if type(module).__name__ == "SlimConv"}
    assert slim == {"layer3.1.conv1"}
