"""Where a gate can go and where not, case by case; every place that is taken gives the same function, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from networks.flowing import ChannelAttention, LayerScale, Overwriting, Pair, Path, SqueezeAndExcitation, WithStem
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import chansurg
from chansurg.recipes.pcs import RECIPE
from chansurg.recipes.pcs.options import PcsOptions
from chansurg.surgery.gating import gates
from chansurg.surgery.plan import Plan
from chansurg.surgery.survey import survey

SIZE = (3, 8, 8)


def planned(network: nn.Module) -> Plan:
    """The plan; and it keeps the function."""
    torch.manual_seed(0)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    network.eval()
    plan = RECIPE.plan(survey(network, SIZE), PcsOptions())
    if plan.edits:
        x = torch.randn(2, *SIZE)
        gated = chansurg.apply(network, plan, input_size=SIZE)
        with torch.no_grad():
            assert torch.equal(gated(x), network(x))
        assert len(gates(gated)) == len(plan.sites)
    return plan


def reason(plan: Plan, path: str) -> str | None:
    """Why ``path`` has no gate; ``None`` where it has one."""
    assert (path in {site.path for site in plan.sites}) is (path not in {skip.path for skip in plan.skipped})
    return next((skip.reason for skip in plan.skipped if skip.path == path), None)


OPEN: dict[str, Callable[[], nn.Module]] = {
    "nothing": lambda: Path(lambda x: x),
    "max pooling": lambda: Path(nn.MaxPool2d(2)),
    "average pooling": lambda: Path(lambda x: functional.avg_pool2d(x, 2)),
    "padding": lambda: Path(lambda x: functional.pad(x, (1, 1, 1, 1))),
    "padding by a module": lambda: Path(nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))),
    "reflection": lambda: Path(nn.ReflectionPad2d(1)),
    "upsampling": lambda: Path(lambda x: functional.interpolate(x, scale_factor=2)),
    "dropout": lambda: Path(nn.Dropout(0.5)),
    "flattening": lambda: Path(nn.Flatten(), nn.Linear(512, 4)),
    "global pooling": lambda: Path(lambda x: x.mean((2, 3)), nn.Linear(8, 4)),
    "flattening pooled maps": lambda: Path(lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1), nn.Linear(8, 4)),
    "tokens": lambda: Path(lambda x: x.flatten(2).transpose(1, 2), nn.Linear(8, 4)),
    "concatenation": lambda: Path(lambda x: torch.cat([x, x], 1), nn.Conv2d(16, 4, 1)),
    "splitting": lambda: Path(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "shuffling": lambda: Path(lambda x: x.view(x.shape[0], 2, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 8, 8, 8)),
    "squeeze and excitation": lambda: Path(SqueezeAndExcitation()),
    "another ReLU": lambda: Path(torch.relu),
    "a number": lambda: Path(lambda x: x * 0.5 / 3),
    "no norm": lambda: Path(nn.Identity(), behind=nn.ReLU()),
    "nothing behind it": lambda: Path(nn.Identity(), behind=nn.Identity()),
    "leaky ReLU": lambda: Path(nn.Identity(), behind=nn.Sequential(nn.BatchNorm2d(8), nn.LeakyReLU())),
    "GELU": lambda: Path(nn.Identity(), behind=nn.Sequential(nn.BatchNorm2d(8), nn.GELU())),
    "sigmoid ahead": lambda: Path(nn.MaxPool2d(2), behind=nn.Sequential(nn.BatchNorm2d(8), nn.Sigmoid())),
    "a norm without scale": lambda: Path(nn.Identity(), behind=nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.ReLU())),
    "norm behind the ReLU": lambda: Path(nn.Identity(), behind=nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))),
}


@pytest.mark.parametrize("name", OPEN)
def test_where_a_removed_channel_vanishes_there_is_a_gate(name: str) -> None:
    assert reason(planned(OPEN[name]()), "gated") is None


CLOSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a norm": (lambda: Path(nn.BatchNorm2d(8), behind=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), "the norm path makes something else"),
    "a norm behind a concatenation": (
        lambda: Path(lambda x: torch.cat([x, x], 1), nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1))),
        r"the norm reader\.0 makes something else",
    ),
    "a norm behind pooling": (lambda: Path(nn.MaxPool2d(2), nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))), "the norm"),
    "instance norm": (
        lambda: Path(nn.Identity(), behind=nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.ReLU())),
        r"behind\.0 cannot become narrower",
    ),
    "group norm": (lambda: Path(nn.Identity(), behind=nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU())), r"behind\.0 mixes its channels"),
    "layer norm": (
        lambda: Path(lambda x: x.permute(0, 2, 3, 1), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))),
        r"the norm reader\.0 makes something else",
    ),
    "sigmoid": (lambda: Path(torch.sigmoid, behind=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), "sigmoid at path:torch.sigmoid makes"),
    "softplus": (lambda: Path(nn.Softplus(), behind=nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())), "Softplus at path makes"),
    "softmax": (lambda: Path(nn.Softmax2d()), "Softmax2d at path"),
    "a constant": (lambda: Path(lambda x: x + 1), "it is added to a constant"),
    "padding with ones": (lambda: Path(lambda x: functional.pad(x, (1, 1, 1, 1), value=1.0)), "pad at"),
    "the output": (lambda: Path(nn.Identity(), nn.Identity()), "it leaves the network"),
    "a parameter for each channel": (lambda: Path(LayerScale()), "it is multiplied by a parameter"),
    "attention over channels": (lambda: Path(ChannelAttention()), "it is multiplied by something whose channels cannot go"),
    "positions mixed with channels": (lambda: Path(nn.PixelShuffle(2), nn.Conv2d(2, 4, 1)), "PixelShuffle at path"),
    "linear across positions": (lambda: Path(nn.Identity(), nn.Linear(8, 4)), "reader works across another axis"),
    "a grouped reader": (lambda: Path(nn.Identity(), nn.Conv2d(8, 4, 1, groups=2)), "reader|behind it, which takes no gate"),
    "a transposed reader": (lambda: Path(nn.Identity(), nn.ConvTranspose2d(8, 4, 2)), "ConvTranspose2d at reader"),
    "a reader whose weight is computed": (
        lambda: Path(nn.Identity(), parametrizations.weight_norm(nn.Conv2d(8, 4, 1))),
        "reader, which reads it, cannot become narrower: its weight is computed",
    ),
    "nobody can take the factor": (
        lambda: Path(nn.SiLU(), behind=nn.Sequential(nn.BatchNorm2d(8), nn.GELU())),
        "nothing can make up for the first salience: SiLU at path",
    ),
    "it overwrites its input": (Overwriting, "overwrites its input"),
}


@pytest.mark.parametrize("name", CLOSED)
def test_where_it_would_not_there_is_none_and_the_reason(name: str) -> None:
    build, why = CLOSED[name]
    network = build()
    found = reason(planned(network), "gated" if isinstance(network, Path) else "conv")
    assert found is not None
    assert re.search(why, found), found


@pytest.mark.parametrize(
    ("groups", "out", "kind", "entries"),
    [(12, 12, "depthwise", 12), (12, 24, "depthwise", 12), (3, 12, "grouped", 3), (4, 8, "grouped", 4)],
)
def test_a_convolution_and_the_grouped_one_behind_it_share_a_gate(groups: int, out: int, kind: str, entries: int) -> None:
    network = WithStem(Pair(groups, out))
    plan = planned(network)
    site = next(site for site in plan.sites if site.path == "inner.grouped")
    assert site.as_json() == {
        "path": "inner.grouped",
        "kind": kind,
        "in_channels": 6,
        "out_channels": out,
        "entries": entries,
        "with": "inner.expand",
    }
    assert "inner.expand" not in {site.path for site in plan.sites} | {skip.path for skip in plan.skipped}
    gated = chansurg.apply(network, plan, input_size=SIZE)
    gate = gated.inner.grouped_salience
    assert (gate.in_channels, gate.entries, gate.unit) == (6, entries, out // entries)
    names = list(gated.inner._modules)
    assert names[names.index("norm2") + 1] == "grouped_salience"


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (Pair(12, 12, reads=True), "12 groups can lose channels only with one convolution that feeds it alone"),
        (Pair(12, 12, between=nn.GroupNorm(2, 12)), "the norm inner.between mixes its channels"),
    ],
)
def test_a_pair_that_others_look_into_has_none(pair: nn.Module, why: str) -> None:
    plan = planned(WithStem(pair))
    assert why in (reason(plan, "inner.grouped") or "")
    assert reason(plan, "inner.expand") is not None


def test_modules_that_are_called_twice_or_share_a_weight_have_none() -> None:
    twice = nn.Conv2d(6, 6, 3, padding=1)
    plan = planned(WithStem(nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU())))
    assert "more than once" in str({skip.reason for skip in plan.skipped})
    assert [site.path for site in plan.sites] == []
    tied = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1))
    tied[4].weight = tied[0].weight
    plan = planned(WithStem(tied))
    assert "shares a weight with inner.4" in (reason(plan, "inner.0") or "")
    assert "inner.4, which reads it, cannot become narrower: it shares a weight with inner.0" in (reason(plan, "inner.2") or "")


def test_a_gated_network_is_not_gated_again() -> None:
    network = chansurg.convert(WithStem(Pair(3, 12)).eval(), "pcs", input_size=SIZE)
    with pytest.raises(chansurg.Refusal, match=r"a gate is behind it already: stem, inner\.grouped, inner\.project"):
        chansurg.plan(network, "pcs", input_size=SIZE)


def test_one_layer_is_told_why_not_and_names_are_free() -> None:
    network = WithStem(nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU()))
    network.inner.add_module("0_salience", nn.Identity())
    assert "inner.0_salience2" in {edit.path for edit in planned(network).edits}
    assert reason(planned(network), "head") == "it is no hidden layer: no activation follows it"
    single = WithStem(nn.Sequential(nn.Conv2d(6, 1, 1), nn.ReLU(), nn.Conv2d(1, 6, 1), nn.ReLU()))
    assert reason(planned(single), "inner.0") == "it has a single channel"


def test_a_hidden_layer_on_vectors_has_a_gate_where_its_generator_is_cheaper() -> None:
    head = nn.Sequential(
        nn.Conv2d(6, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.GELU(),
        nn.Linear(64, 5),
    )
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), *head)
    plan = planned(network)
    assert {site.path: site.kind for site in plan.sites} == {
        "0": "convolution",
        "2": "convolution",
        "5": "feed-forward",
        "7": "feed-forward",
    }
    wide = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 5))
    assert "would cost more than the layer's 24576" in (reason(planned(wide), "3") or "")
