"""Branches that compute on a selection: the right tensors meet in the right order, in every form a block is written in."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import small
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual

import chansurg
from chansurg.surgery.editing.applying import ChangedUnderneath, perform
from chansurg.surgery.edits import Address, Bypass, Edit, Insert, LayerSpec, Narrow, Repeat, Route
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.plan import Plan

pytestmark = pytest.mark.usefixtures("test_layers")
EIGHT = tuple(range(8))


def selecting(channels: int) -> LayerSpec:
    return LayerSpec("engine.Selecting", {"channels": channels, "kept": 8})


def route(owner: str, into: tuple[str, ...], closes: str, passing: int | None, channels: int = 32, **changes: Any) -> Route:
    arguments = {"name": "selector", "layer": selecting(channels), "fusion_name": "fusion", "fusion": LayerSpec("engine.Fusing"), **changes}
    return Route(tuple(Address(owner, operation) for operation in into), Address(owner, closes), passing, **arguments)


def narrowed(path: str) -> list[Edit]:
    """A basic block of eight channels."""
    layers = ("conv1", "bn1", "conv2", "bn2")
    return [Narrow(f"{path}.{name}", EIGHT if name.startswith("conv") else None, EIGHT) for name in layers]


def network() -> small.Small:
    torch.manual_seed(0)
    return small.Small(5, 8).eval()


BASIC: list[Edit] = [route("blocks.2", ("self.conv1",), "operator.add", 1), *narrowed("blocks.2")]


def basic(block: small.Basic, x: Tensor) -> Tensor:
    selected, note = block.selector(x)
    out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(selected)))))
    return torch.relu(block.fusion(x, out, note))


def test_the_branch_gets_the_selection_and_the_fusion_what_passes_by() -> None:
    edited = network()
    block = edited.blocks[2]
    block.train()
    perform(edited, BASIC, {"blocks.2": {}}, seed=0)
    assert [name for name, _ in block.named_children()] == ["selector", "conv1", "bn1", "conv2", "bn2", "fusion"]
    assert block.selector.training
    assert isinstance(block, small.Basic)
    edited.eval()
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(x), basic(block, x))
        assert torch.equal(copy.deepcopy(block)(x), basic(block, x))
    edited.train()(torch.randn(2, 3, 16, 16)).sum().backward()
    assert edited.blocks[2].selector.weight.grad[:8].abs().min() > 0


def test_other_edits_in_the_same_forward_keep_their_places() -> None:
    edited = network()
    pix = LayerSpec("pix.PickOrMix", {"in_channels": 8, "out_channels": 8})
    edits = [*BASIC, Insert(Address("blocks.2", "self.conv2"), "gate", pix), Bypass(Address("blocks.2", "self.bn2"))]
    edits[4:5] = []  # the narrowed norm, which goes
    perform(edited, edits, {"blocks.2": {}}, seed=0)
    block, x = edited.blocks[2], torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        selected, note = block.selector(x)
        out = block.conv2(block.gate(torch.relu(block.bn1(block.conv1(selected)))))
        assert torch.equal(block(x), torch.relu(block.fusion(x, out, note)))
    assert not hasattr(block, "bn2")


def test_a_layer_put_in_front_of_the_branch_later_sees_the_selection() -> None:
    pix = LayerSpec("pix.PickOrMix", {"in_channels": 8, "out_channels": 8})
    edited = network()
    perform(edited, [*BASIC, Insert(Address("blocks.2", "self.conv1"), "gate", pix)], {"blocks.2": {}}, seed=0)
    block, x = edited.blocks[2], torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        selected, note = block.selector(x)
        out = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(block.gate(selected))))))
        assert torch.equal(block(x), torch.relu(block.fusion(x, out, note)))


def test_a_block_whose_branch_is_one_child() -> None:
    torch.manual_seed(0)
    block = InvertedResidual(16, 16, 1, 1).eval()
    network = nn.Sequential(block)
    edits: list[Edit] = [
        route("0", ("self.conv",), "operator.add", 0, 16),
        Narrow("0.conv.0.0", None, EIGHT),
        Narrow("0.conv.0.1", None, EIGHT),
        Narrow("0.conv.1", EIGHT, EIGHT),
        Narrow("0.conv.2", None, EIGHT),
    ]
    perform(network, edits, {"0": {}}, seed=0)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        selected, note = block.selector(x)
        assert torch.equal(network(x), block.fusion(x, block.conv(selected), note))


class TwoPaths(nn.Module):
    """Two convolutions read the input, and their sum is added in place: ``[B, C, H, W] -> [B, C, H, W]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, channels, 1)
        self.right = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.left(x) * self.right(x)
        out += x
        return out


def test_a_branch_may_begin_twice_and_end_in_place() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(TwoPaths(16))
    edits: list[Edit] = [route("0", ("self.right", "self.left"), "operator.iadd", 1, 16)]
    perform(network, [*edits, Narrow("0.left", EIGHT, EIGHT), Narrow("0.right", EIGHT, EIGHT)], {"0": {}}, seed=0)
    block, x = network[0], torch.randn(2, 16, 4, 4)
    before = x.clone()
    with torch.no_grad():
        selected, note = block.selector(x)
        assert torch.equal(network(x), block.fusion(x, block.left(selected) * block.right(selected), note))
    assert torch.equal(x, before)


@pytest.mark.parametrize("closes", ["self.0", "self.2"])
def test_a_chain_without_an_addition_is_fused_with_its_own_input(closes: str) -> None:
    torch.manual_seed(0)
    conv, norm, relu, last = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)
    chain = nn.Sequential(conv, norm, relu, last).eval()
    edits: list[Edit] = [route("", ("self.0",), closes, None, 16), Narrow("0", EIGHT, EIGHT)]
    if closes == "self.2":
        edits.append(Narrow("1", None, EIGHT))
    perform(chain, edits, {"": {}}, seed=0)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        selected, note = chain.selector(x)
        if closes == "self.2":
            expected = last(chain.fusion(x, relu(norm(conv(selected))), note))
        else:
            expected = last(relu(norm(chain.fusion(x, conv(selected), note))))
        assert torch.equal(chain(x), expected)


def test_routed_networks_are_replayed_saved_and_undone(tmp_path: Path) -> None:
    chansurg.save(chansurg.load("networks.small:small", input_size=(16,)), tmp_path / "a.safetensors")
    start = chansurg.load(tmp_path / "a.safetensors", arch="networks.small:small")
    edits = (Repeat("blocks.2", "3"), route("blocks.3", ("self.conv1",), "operator.add", 1), *narrowed("blocks.3"))
    edited = chansurg.apply(start, Plan("pix", 1, {}, (), edits, signatures={"blocks.3": {}}))
    chansurg.save(edited, tmp_path / "b.safetensors")
    loaded = chansurg.load(tmp_path / "b.safetensors", arch="networks.small:small")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), edited(x))
    assert str(loaded) == str(edited)
    assert chansurg.undo(tmp_path / "b.safetensors") == tmp_path / "a.safetensors"
    hashes = dict(chansurg.record_of(edited).journal[0].graphs)
    assert perform(meta_copy(network()), edits, {"blocks.3": {}}, seed=None, expected=hashes) == hashes
    with pytest.raises(ChangedUnderneath):
        perform(meta_copy(network()), edits, {"blocks.3": {}}, seed=None, expected={"blocks.3": "another"})


def test_a_routed_forward_can_be_edited_again_and_compiled() -> None:
    edited = network()
    perform(edited, BASIC, {"blocks.2": {}}, seed=0)
    expected = copy.deepcopy(edited)
    pix = LayerSpec("pix.PickOrMix", {"in_channels": 32, "out_channels": 32})
    perform(edited, [Insert(Address("blocks.2", "self.fusion"), "gate", pix)], {"blocks.2": {}}, seed=0)
    perform(edited, [Bypass(Address("blocks.2", "self.gate"))], {"blocks.2": {}}, seed=0)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(edited(x), expected(x))
        torch.testing.assert_close(torch.compile(edited, fullgraph=True, backend="eager")(x), expected(x))
        exported = torch.export.export(edited, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(exported.module()(x[:1]), expected(x[:1]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (route("blocks.2", ("self.conv1",), "operator.add", 0), "operand 0 of the addition comes out of the branch"),
        (route("blocks.2", ("self.conv1", "self.conv2"), "operator.add", 1), "do not begin with one and the same tensor"),
        (route("blocks.2", ("self.conv1",), "self.bn2", 1), "the call that is to end the branch is no addition"),
        (route("blocks.2", ("self.conv2",), "self.bn1", None), "is not reached by it"),
        (route("blocks.2", ("self.nix",), "operator.add", 1), "was not found"),
        (route("blocks.2", ("self.conv1",), "torch.add", 1), "was not found"),
        (route("blocks.9", ("self.conv1",), "operator.add", 1), "was not found"),
        (route("blocks.2", ("self.conv1",), "operator.add", 1, name="bn2"), r"blocks\.2\.bn2 exists already"),
        (route("blocks.2", ("self.conv1",), "operator.add", 1, fusion_name="bn2"), r"blocks\.2\.bn2 exists already"),
    ],
)
def test_a_route_that_does_not_fit_is_refused(edit: Route, reason: str) -> None:
    with pytest.raises(chansurg.Refusal, match=reason):
        perform(network(), [edit], {"blocks.2": {}}, seed=0)


def test_a_selection_that_the_branch_cannot_take_is_refused_before_anything_is_written() -> None:
    start = chansurg.load("networks.small:small", input_size=(16,))
    plan = Plan("pix", 1, {}, (), (BASIC[0],), signatures={"blocks.2": {}})
    with pytest.raises(chansurg.Refusal, match="would not do what the original does"):
        chansurg.apply(start, plan)
