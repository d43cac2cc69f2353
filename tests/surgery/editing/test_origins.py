"""What became of each tensor: the journal's word for it must be true of the numbers."""

from __future__ import annotations

import pytest
import torch
from networks import routed
from networks.small import Small

import chansurg
from chansurg.surgery.editing.origins import Origins, origins_of
from chansurg.surgery.edits import Address, Attach, Bypass, Inherit, LayerSpec, Narrow, Repeat, Swap

LAYER = LayerSpec("pix.PickOrMix")
BEFORE = {"a.weight": (8, 4), "a.bias": (8,), "s.0.weight": (3,), "s.0.in.weight": (2,)}


def test_a_new_layer_with_the_old_ones_names_is_new() -> None:
    found = origins_of([Swap("a", LAYER)], BEFORE, BEFORE)
    assert found == Origins(kept=2, new=["a.weight", "a.bias"])
    inherited = [Swap("a", LAYER), Inherit("a.weight", "a.weight")]
    assert origins_of(inherited, BEFORE, BEFORE) == Origins(kept=3, new=["a.bias"], sources={"a.weight": "a.weight"})


def test_a_reordered_tensor_is_a_selection_though_its_shape_is_the_same() -> None:
    edits = [Inherit("a.bias", "a.bias", (tuple(reversed(range(8))),))]
    assert origins_of(edits, BEFORE, BEFORE).sliced == ["a.bias"]


def test_copies_of_copies_come_from_the_first() -> None:
    after = {**BEFORE, "s.1.weight": (3,), "s.1.in.weight": (1,), "s.2.weight": (3,), "s.2.in.weight": (2,)}
    found = origins_of([Repeat("s.0", "1"), Repeat("s.1", "2"), Narrow("s.1.in", None, (0,))], BEFORE, after)
    assert found.sources == {name: name.replace("s.1", "s.0").replace("s.2", "s.0") for name in after if name.startswith(("s.1", "s.2"))}
    assert (found.kept, found.sliced, found.new, found.removed) == (7, ["s.1.in.weight"], [], [])


def test_what_is_gone_and_what_was_attached() -> None:
    edits = [Bypass(Address("", "self.a")), Attach(Address("", "self.s"), Address("", "self.s"), "gate", LAYER)]
    found = origins_of(edits, BEFORE, {"s.0.weight": (2,), "s.0.in.weight": (2,), "gate.weight": (1,)})
    assert found == Origins(1, ["s.0.weight"], ["gate.weight"], ["a.weight", "a.bias"])


@pytest.mark.usefixtures("test_layers")
def test_the_journal_tells_the_truth_of_every_tensor() -> None:
    network = routed.routed()
    original = Small(5, 8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    before, after = original.state_dict(), network.state_dict()
    entry = chansurg.record_of(network).journal[-1]
    assert entry.kept == len(after) - len(entry.sliced) - len(entry.new)
    assert entry.sources[f"{routed.OWNER}.bn2.bias"] == "blocks.2.bn1.bias"
    assert entry.sources[f"{routed.OWNER}.conv1.weight"] == "blocks.2.conv1.weight"
    assert entry.new == ()
    assert entry.removed == ()
    assert {name for name in after if name.startswith(routed.OWNER)} == set(entry.sources)
    for name, tensor in after.items():
        source = before[entry.sources.get(name, name)]
        if name in entry.sliced:
            kept = source[list(routed.KEPT)]
            assert torch.equal(tensor, kept[:, list(routed.KEPT)] if tensor.ndim == 4 else kept)
        else:
            assert torch.equal(tensor, source)
