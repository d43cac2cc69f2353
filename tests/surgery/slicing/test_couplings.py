"""Every way in which channels hang together: what goes is never missed, and what can go does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import slots
from networks.gated import draw_masks, performing, shift_norms, with_gates
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.errors import InputError
from chansurg.surgery.gating import gates
from chansurg.surgery.slicing.couplings import RESIDUALS, Couplings
from chansurg.surgery.slicing.cutting import Cut, cut
from chansurg.surgery.survey import survey

SIZE = (3, 32, 32)


def gated(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = with_gates(make().eval(), SIZE)
    shift_norms(network, torch.randn(4, *SIZE), torch.Generator().manual_seed(1))
    return network


def keep_only(network: nn.Module, kept: dict[str, list[int]]) -> None:
    """Mask these gates but for the named entries; the others keep everything."""
    for path, gate in gates(network).items():
        gate.mask.fill_(path not in kept)
        gate.mask[kept.get(path, [])] = True


def of(network: nn.Module, conv: str) -> str:
    """The gate right behind a layer, by what its features are called."""
    surveyed = survey(network, SIZE)
    for region in surveyed.regions:
        for node in region.nodes:
            if node.meta.get("path") in gates(network):
                source = node.args[0]
                while source.meta.get("path") != conv and source.all_input_nodes:
                    source = source.all_input_nodes[0]
                if source.meta.get("path") == conv and source.op == "call_module" and _nearest(node, conv):
                    return str(node.meta["path"])
    raise AssertionError(conv)


def _nearest(node: torch.fx.Node, conv: str) -> bool:
    source = node.args[0]
    while isinstance(source, torch.fx.Node) and source.meta.get("path") != conv:
        if isinstance(source.meta.get("module"), (nn.Conv2d, nn.Linear)) or "gate" in str(source.meta.get("path")):
            return False
        source = source.all_input_nodes[0]
    return True


def sliced(
    network: nn.Module, residual: str = "scatter", multiple_of: int = 1, couplings: Couplings | None = None
) -> tuple[nn.Module, Cut]:
    couplings = couplings or Couplings(survey(network, SIZE))
    made = cut(couplings, couplings.widths(residual=residual, multiple_of=multiple_of), couplings.masked(None))
    small = copy.deepcopy(network)
    with performing():
        perform(small, made.edits, made.signatures, seed=0)
    counted, cost = chansurg.count(small, SIZE), couplings.cost(residual=residual, multiple_of=multiple_of)
    assert (cost.params, cost.macs, cost.memory_access) == (counted.params, counted.macs, counted.memory_access)
    return small, made


def assert_same(network: nn.Module, small: nn.Module) -> None:
    x = torch.cat([torch.randn(3, *SIZE), torch.zeros(1, *SIZE)]).double()
    with torch.no_grad():
        expected, actual = copy.deepcopy(network).double()(x), copy.deepcopy(small).double()(x)
    assert expected.abs().max() > 1e-3
    assert (expected - actual).abs().max() <= 1e-13 * expected.abs().max()


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("make", slots.EVERY)
def test_whatever_is_masked_the_sliced_network_is_the_masked_one(make: type[nn.Module], residual: str) -> None:
    network = gated(make)
    generator = torch.Generator().manual_seed(2)
    couplings = Couplings(survey(network, SIZE))
    for share, multiple_of in ((1.0, 1), (0.6, 3), (0.4, 1), (0.1, 1)):
        draw_masks(network, share, generator)
        small, _ = sliced(network, residual, multiple_of, couplings)
        assert_same(network, small)


def widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        path: (module.in_channels, module.out_channels) if isinstance(module, nn.Conv2d) else (module.in_features, module.out_features)
        for path, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and "gate" not in path
    }


@pytest.mark.parametrize(
    ("make", "layer", "kept", "expected"),
    [
        (slots.Flattened, "stem", [1, 5], {"stem": (3, 2), "head": (2 * 256, 5)}),
        (slots.FlattenedByConstant, "stem", [1, 5], {"stem": (3, 8), "head": (8 * 256, 5)}),
        (slots.Concatenated, "a", [0, 2, 4], {"a": (8, 3), "b": (8, 10), "head": (13, 5)}),
        (slots.Chunked, "stem", [0, 1, 3, 4, 5, 7], {"stem": (3, 6), "a": (3, 4), "b": (3, 4)}),
        (slots.Chunked, "stem", [0, 1, 2, 4, 5, 7], {"stem": (3, 8), "a": (4, 4), "b": (4, 4)}),
        (slots.SplitByConstant, "stem", [0, 1, 3, 4, 5, 7], {"stem": (3, 8)}),
        (slots.Shuffled, "stem", [0, 2, 4, 6], {"stem": (3, 4), "grouped": (4, 8)}),
        (slots.Shuffled, "stem", [0, 1, 3, 4, 5, 7], {"stem": (3, 8), "grouped": (8, 8)}),
        (slots.Shuffled, "stem", [0, 1, 2, 3, 4, 5, 7], {"stem": (3, 8), "grouped": (8, 8)}),
        (slots.Depthwise, "expand", [0, 3, 9], {"expand": (8, 16), "depthwise": (16, 16)}),
        (slots.SqueezedAndExcited, "stem", [2, 3, 4], {"stem": (3, 3), "fc1": (3, 4), "fc2": (4, 3), "head": (3, 5)}),
        (slots.WeightedInSpace, "stem", [2, 3, 4], {"stem": (3, 3), "map": (3, 1), "head": (3, 5)}),
        (slots.SharedLayer, "stem", [2, 3, 4], {"stem": (3, 8), "shared": (8, 8)}),
        (slots.ChangedInPlace, "stem", [2, 3, 4], {"stem": (3, 8), "conv": (8, 8)}),
        (slots.CountsItsChannels, "stem", [2, 3, 4], {"stem": (3, 8)}),
        (slots.FilledUp, "conv", [2, 3, 4], {"conv": (8, 3), "head": (16, 5)}),
        (slots.Tokens, "fc1", [2, 3, 4], {"fc1": (8, 3), "fc2": (3, 8)}),
        (slots.Attention, "qkv", [2, 3, 4], {"qkv": (8, 24)}),
        (slots.Attention, "out", [2, 3, 4], {"out": (8, 8), "head": (8, 5)}),
    ],
)
def test_what_one_gate_lets_go_of(make: type[nn.Module], layer: str, kept: list[int], expected: dict[str, tuple[int, int]]) -> None:
    network = gated(make)
    keep_only(network, {of(network, layer): kept})
    small, made = sliced(network)
    found = widths(small)
    assert {path: found[path] for path in expected} == expected
    assert_same(network, small)
    if found == widths(network):
        assert made.staying


def test_a_depthwise_convolution_goes_with_what_feeds_it_where_both_are_let_go_of() -> None:
    network = gated(slots.Depthwise)
    keep_only(network, {of(network, "expand"): [0, 3, 9], of(network, "depthwise"): [0, 3, 8, 9]})
    small, _ = sliced(network)
    found = widths(small)
    assert (found["expand"], found["depthwise"], found["project"]) == ((8, 4), (4, 4), (4, 8))
    assert_same(network, small)


def test_a_tensor_that_takes_the_size_of_another_goes_with_it() -> None:
    network = gated(slots.Attention)
    keep_only(network, {of(network, "stem"): [2, 3, 4], of(network, "out"): [2, 3, 5]})
    small, _ = sliced(network)
    found = widths(small)
    assert (found["stem"], found["qkv"], found["out"], found["head"]) == ((3, 4), (4, 24), (8, 4), (4, 5))
    assert_same(network, small)


def test_whole_groups_go_with_what_only_they_read() -> None:
    network = gated(slots.Shuffled)
    keep_only(network, {of(network, "grouped"): [1]})
    small, made = sliced(network)
    assert widths(small)["grouped"] == (8, 8)  # one group reads channels of both halves, and their shuffle has to stay
    network = chansurg.convert(slots.Multiplied().eval(), "pcs", input_size=SIZE)
    (gate,) = (path for path in gates(network) if "depthwise" in path or "expand" in path)
    keep_only(network, {gate: [0, 1, 5]})
    small, made = sliced(network)
    conv = small.get_submodule("depthwise")
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, 6, 3)
    assert "read only by group 2 of depthwise, which goes" in made.going["expand"]
    assert_same(network, small)


def test_a_branch_loses_channels_that_its_stage_keeps() -> None:
    network = gated(slots.Residual)
    keep_only(network, {of(network, "blocks.0.conv2"): [0, 3], of(network, "blocks.1.conv1"): [5]})
    small, made = sliced(network, "scatter")
    found = widths(small)
    assert (found["stem"], found["blocks.0.conv2"], found["blocks.1.conv1"]) == ((3, 8), (12, 2), (8, 1))
    replaced = [edit for edit in made.edits if edit.op == "replace"]
    assert [edit.layer.arguments["kept"] for edit in replaced] == [[0, 3]]
    assert_same(network, small)
    coupled, made = sliced(network, "coupled")
    assert widths(coupled)["blocks.0.conv2"] == (12, 8)
    assert not [edit for edit in made.edits if edit.op == "replace"]
    (reasons,) = made.staying.values()
    assert list(reasons.values()) == [[1, 2, 4, 5, 6, 7]]
    assert next(iter(reasons)).startswith("it is not zero where blocks.")


@pytest.mark.parametrize("residual", RESIDUALS)
def test_a_stage_loses_what_everything_in_it_lets_go_of(residual: str) -> None:
    network = gated(slots.Residual)
    every = [of(network, layer) for layer in ("stem", "blocks.0.conv2", "blocks.1.conv2")]
    keep_only(network, {path: [0, 1, 3, 4] for path in every})
    small, made = sliced(network, residual)
    assert widths(small)["stem"] == (3, 4)
    assert widths(small)["head"] == (4, 5)
    assert not [edit for edit in made.edits if edit.op == "replace"]  # branch and stage are alike, so the addition stays what it is
    assert_same(network, small)
    (reason,) = made.going["stem"]
    assert all(path in reason for path in every)


def test_channels_filled_up_with_zeros_stay_and_say_so() -> None:
    network = gated(slots.FilledUp)
    keep_only(network, {of(network, "stem"): [0, 1], of(network, "conv"): [5]})
    small, made = sliced(network, "coupled")
    assert (widths(small)["stem"], widths(small)["conv"]) == ((3, 2), (2, 10))  # the stem's channels are the branch's from 4 to 11
    assert any("always fills up with 8 channels of zeros" in reason for reason in made.staying[of(network, "conv")])


def test_multiples_keep_the_most_important_of_what_could_go() -> None:
    network = gated(slots.Tokens)
    path = of(network, "fc1")
    keep_only(network, {path: [0, 1, 2, 3, 4]})
    gate = gates(network)[path]
    gate.running_salience.zero_()
    gate.importance.copy_(torch.arange(24.0))
    small, _ = sliced(network, multiple_of=8)
    assert widths(small)["fc1"] == (8, 8)
    left = gates(small)[path]
    assert left.importance.tolist() == [0, 1, 2, 3, 4, 21, 22, 23]
    assert left.mask.tolist() == [True] * 5 + [False] * 3
    assert_same(network, small)


def test_masks_are_taken_by_channel_or_by_unit_and_bad_ones_are_refused() -> None:
    network = gated(slots.Shuffled)
    couplings = Couplings(survey(network, SIZE))
    path = of(network, "grouped")
    assert gates(network)[path].unit == 4
    by_unit, by_channel = torch.tensor([True, False]), torch.tensor([True] * 4 + [False] * 4)
    assert np.array_equal(couplings.masked({path: by_unit})[path], couplings.masked({path: by_channel})[path])
    for masks, message in (
        ({path: torch.tensor([True] * 3 + [False] * 5)}, "cuts through units of 4"),
        ({path: torch.ones(3, dtype=torch.bool)}, r"has \[3\] entries"),
        ({"nowhere": by_unit}, "no gate there"),
    ):
        with pytest.raises(InputError, match=message):
            couplings.widths(masks)
    for wrong in ({"residual": "both"}, {"multiple_of": 0}):
        with pytest.raises(InputError):
            couplings.widths(None, **wrong)  # type: ignore[arg-type]


def test_without_masks_nothing_goes_anywhere() -> None:
    for make in slots.EVERY:
        network = gated(make)
        couplings = Couplings(survey(network, SIZE))
        for residual in RESIDUALS:
            small, made = sliced(network, residual, couplings=couplings)
            assert made.edits == []
            assert widths(small) == widths(network)
