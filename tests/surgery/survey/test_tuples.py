"""Layers that give several tensors: a closed book to everybody, and no stumbling block to anybody."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import routed
from torch import nn

import chansurg
from chansurg.surgery.gating import gates
from chansurg.surgery.slicing.couplings import Couplings
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import path_of
from chansurg.surgery.training.block_outputs import matched_blocks

pytestmark = pytest.mark.usefixtures("test_layers")
SIZE = (3, 16, 16)
SELECTING = f"its channels go through Selecting at {routed.OWNER}.selector"
FUSING = f"its channels go through Fusing at {routed.OWNER}.fusion"


@pytest.fixture
def network(test_layers: None) -> nn.Module:
    return routed.routed()


def blockers(surveyed: Survey, path: str) -> list[str]:
    region = surveyed.regions[0]
    node = next(node for node in region.nodes if path_of(node) == path)
    return surveyed.spaces(region).after(node).blockers


def test_channels_that_go_through_them_are_blocked_by_the_layers_name(network: nn.Module) -> None:
    surveyed = survey(network, SIZE)
    assert surveyed.untraced == {}
    assert surveyed.regions[0].shapes_reason is None
    assert blockers(surveyed, "blocks.2.conv2") == [SELECTING, FUSING]
    assert blockers(surveyed, f"{routed.OWNER}:operator.getitem") == [SELECTING]
    assert blockers(surveyed, f"{routed.OWNER}:operator.getitem#1") == [SELECTING, FUSING]
    assert blockers(surveyed, f"{routed.OWNER}.conv1") == []
    assert blockers(surveyed, f"{routed.OWNER}.conv2") == [FUSING]


def test_the_selection_has_its_channels_where_the_layers_input_has_them(network: nn.Module) -> None:
    network.blocks[3].conv1 = nn.Sequential(nn.ReLU(), network.blocks[3].conv1)
    assert blockers(survey(network, SIZE), f"{routed.OWNER}.conv1.0") == [SELECTING]


def test_couplings_leave_alone_what_they_cannot_follow(network: nn.Module) -> None:
    gated = chansurg.convert(network, "pcs", input_size=SIZE)
    masks = {path: torch.arange(gate.entries) % 2 > 0 for path, gate in gates(gated).items()}
    widths = Couplings(survey(gated, SIZE)).widths(masks).of_layers()
    assert np.array_equal(widths[f"{routed.OWNER}.conv1"][1], [1, 3, 5, 7])
    assert len(widths[f"{routed.OWNER}.conv2"][1]) == 8
    assert len(widths["blocks.0.shortcut"][1]) == 32, "it flows into the selection"
    for path, gate in gates(gated).items():
        gate.mask.copy_(masks[path])
    sliced = chansurg.slice(gated)
    results = chansurg.record_of(sliced).journal[-1].results
    assert SELECTING in {told["reason"] for found in results["staying"].values() for told in found}
    assert results["max_rel_error"] < 1e-4


def test_the_other_commands_read_such_a_network(network: nn.Module) -> None:
    report = chansurg.inspect(network)
    assert report.untraced == []
    before = chansurg.count(chansurg.load(routed.NAME, input_size=SIZE))
    block = chansurg.count(network).macs - before.macs
    assert 0 < block < before.macs, "a narrow block more"
    assert chansurg.verify(network, routed.routed()).equal
    unlike = routed.routed()
    with torch.no_grad():
        unlike.blocks[3].selector.weight.add_(1)
    verdict = chansurg.verify(network, unlike)
    assert (verdict.equal, verdict.first_difference) == (False, f"{routed.OWNER}.selector")
    teacher = chansurg.load(routed.NAME, input_size=SIZE)
    assert matched_blocks(network, teacher) == ["blocks.0", "blocks.1", "blocks.2"]
    assert matched_blocks(teacher, network) == ["blocks.0", "blocks.1", "blocks.2"]


@pytest.mark.parametrize("mode", ["squeeze", "downscale"])
def test_other_recipes_find_their_sites_around_and_inside(network: nn.Module, mode: str) -> None:
    converted = chansurg.convert(network, "pix", mode=mode, input_size=SIZE)
    inside = [edit.path for edit in chansurg.record_of(converted).journal[-1].edits if edit.path.startswith(routed.OWNER)]
    assert bool(inside) == (mode == "downscale")
    with torch.no_grad():
        assert converted(torch.randn(2, *SIZE)).shape == (2, 5)
