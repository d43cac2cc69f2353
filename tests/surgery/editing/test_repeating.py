"""Modules that are followed by copies of themselves: called right behind them, with their weights, and open to other edits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from networks import small
from torch import Tensor, nn

import chansurg
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.edits import Address, Edit, Insert, LayerSpec, Narrow, Repeat
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.plan import Plan

PIX = LayerSpec("pix.PickOrMix", {"in_channels": 32, "out_channels": 32})
TWICE: list[Edit] = [
    Insert(Address("blocks.4", "self.conv2"), "gate", PIX),
    Narrow("blocks.3.conv1", None, tuple(range(16))),
    Narrow("blocks.3.bn1", None, tuple(range(16))),
    Narrow("blocks.3.conv2", tuple(range(16)), None),
    Repeat("blocks.2", "3"),
    Repeat("blocks.3", "4"),
]


def network() -> small.Small:
    torch.manual_seed(0)
    return small.Small(5, 8).eval()


def test_copies_run_behind_what_they_copy_and_other_edits_reach_into_them() -> None:
    original = network()
    edited = copy.deepcopy(original)
    perform(edited, TWICE, {"blocks.4": {}}, seed=0)
    blocks = edited.blocks
    assert list(blocks._modules) == ["0", "1", "2", "3", "4"]
    assert all(isinstance(blocks[i], small.Basic) for i in (2, 3, 4))
    assert torch.equal(blocks[3].conv1.weight, original.blocks[2].conv1.weight[:16])
    assert torch.equal(blocks[4].conv1.weight, original.blocks[2].conv1.weight), "copied before the other was narrowed"
    assert blocks[4].conv2.weight.data_ptr() != blocks[2].conv2.weight.data_ptr()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        y = original.blocks(torch.relu(original.stem(x)))
        for block in (blocks[3], blocks[4]):
            y = block(y)
        assert torch.equal(edited(x), edited.fc(y.mean((2, 3))))
    edited.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in blocks[4].parameters())


def test_repeated_networks_are_replayed_on_a_skeleton_and_saved(tmp_path: Path) -> None:
    start = chansurg.load("networks.small:small", input_size=(16,))
    plan = Plan("pix", 1, {}, (), tuple(TWICE), signatures={"blocks.4": {}})
    edited = chansurg.apply(start, plan)
    skeleton = meta_copy(network())
    perform(skeleton, TWICE, {"blocks.4": {}}, seed=None)
    assert str(skeleton) == str(edited)
    chansurg.save(edited, tmp_path / "a.safetensors")
    loaded = chansurg.load(tmp_path / "a.safetensors", arch="networks.small:small")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), edited(x))


class Own(nn.Sequential):
    """A sequence that calls its children as it pleases."""

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x)


@pytest.mark.parametrize(
    ("repeat", "reason"),
    [
        (Repeat("blocks.2", "1"), r"blocks\.1 exists already"),
        (Repeat("blocks.2", "forward"), "exists already"),
        (Repeat("stem", "stem2"), "stem is no child of a plain nn.Sequential"),
        (Repeat("", "x"), "The network is no child of a plain nn.Sequential"),
        (Repeat("blocks.9", "10"), r"has no module 'blocks\.9'"),
        (Repeat("own.0", "1"), r"own\.0 is no child of a plain nn.Sequential"),
    ],
)
def test_a_repeat_that_would_not_be_called_is_refused(repeat: Repeat, reason: str) -> None:
    parent = network()
    parent.own = Own(nn.ReLU())
    with pytest.raises(chansurg.Refusal, match=reason):
        perform(parent, [repeat], {}, seed=0)


def test_a_name_is_taken_by_the_copy_before() -> None:
    with pytest.raises(chansurg.Refusal, match=r"blocks\.3 exists already"):
        perform(network(), [Repeat("blocks.2", "3"), Repeat("blocks.1", "3")], {}, seed=0)
