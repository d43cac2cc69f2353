"""Replaying edits: the code underneath must be the code that was edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import ChangedUnderneath, perform, working_copy
from chansurg.surgery.edits import Address, Insert, LayerSpec
from chansurg.surgery.forwards.skeleton import meta_copy

SIZE = (3, 32, 32)


def planned(**options: Any) -> tuple[nn.Module, chansurg.Plan]:
    torch.manual_seed(0)
    network = small.small().eval()
    return network, chansurg.plan(network, "pix", input_size=SIZE, **options)


def test_replaying_on_a_skeleton_gives_the_same_modules_and_hashes() -> None:
    network, plan = planned(mode="downscale", zeta=2)
    skeleton = meta_copy(network)
    hashes = perform(network, plan.edits, plan.signatures, seed=0)
    assert hashes.keys() == plan.signatures.keys()
    assert all(len(digest) == 16 for digest in hashes.values())
    assert perform(skeleton, plan.edits, plan.signatures, seed=None, expected=hashes) == hashes
    assert all(tensor.is_meta for tensor in skeleton.state_dict().values())
    assert str(skeleton) == str(network)
    assert {n: t.shape for n, t in skeleton.state_dict().items()} == {n: t.shape for n, t in network.state_dict().items()}


class ChangedBasic(small.Basic):
    """The same layers in another order, as a later release of a library might have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn1(self.conv1(torch.relu(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


def test_a_library_that_changed_underneath_is_named_and_nothing_is_done() -> None:
    network, plan = planned(mode="downscale", zeta=2)
    hashes = perform(working_copy(network, inplace=False), plan.edits, plan.signatures, seed=0)
    network.blocks[2].__class__ = ChangedBasic
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    with pytest.raises(ChangedUnderneath, match=r"blocks\.2"):
        perform(network, plan.edits, plan.signatures, seed=None, expected=hashes)
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == before


def test_a_loaded_file_names_the_module_and_the_libraries(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = chansurg.load("networks.small:small", input_size=SIZE)
    chansurg.save(chansurg.convert(network, "pix", mode="downscale", zeta=2), tmp_path / "a.safetensors")
    chansurg.load(tmp_path / "a.safetensors", arch="networks.small:small")
    monkeypatch.setattr(small.Basic, "forward", ChangedBasic.forward)
    with pytest.raises(chansurg.InputError, match=r"The code of blocks\.2 is not what it was") as refused:
        chansurg.load(tmp_path / "a.safetensors", arch="networks.small:small")
    assert f"torch {torch.__version__.partition('+')[0]}" in refused.value.to_do


def test_an_inserted_layer_stands_in_front_of_the_call_it_serves() -> None:
    network, _ = planned()
    layer = LayerSpec("pix.PickOrMix", {"in_channels": 32, "out_channels": 32})
    perform(network, [Insert(Address("blocks.2", "self.conv2"), "gate", layer)], {"blocks.2": {}}, seed=0)
    assert [name for name, _ in network.blocks[2].named_children()] == ["conv1", "bn1", "gate", "conv2", "bn2"]
    assert isinstance(network.blocks[2], small.Basic)
    assert type(network.blocks[2]).__qualname__ == "Basic"
    x = torch.randn(2, 32, 8, 8)
    block = network.blocks[2]
    with torch.no_grad():
        expected = torch.relu(block.bn2(block.conv2(block.gate(torch.relu(block.bn1(block.conv1(x)))))) + x)
        assert torch.equal(block(x), expected)


def test_a_working_copy_shares_nothing() -> None:
    network, _ = planned()
    other = working_copy(network, inplace=False)
    assert working_copy(network, inplace=True) is network
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in other.parameters()}
