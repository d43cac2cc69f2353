"""Replaying edits: the code underneath must be the code that was edited."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import small
from torch import nn

import chansurg
from chansurg.surgery.editing.applying import ChangedUnderneath, perform, working_copy
from chansurg.surgery.editing.building import build_layer
from chansurg.surgery.edits import Address, Attach, Bypass, Insert, LayerSpec, Replace, Scale
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


WEIGHTING = LayerSpec("engine.Weighting", {"channels": 32})


def edited(network: nn.Module, edits: list[Any], owners: list[str]) -> dict[str, str]:
    return perform(network, edits, {owner: {} for owner in owners}, seed=0)


@pytest.mark.usefixtures("test_layers")
def test_an_attached_layer_reads_one_call_and_follows_another() -> None:
    network, _ = planned()
    block, owner = network.blocks[2], "blocks.2"
    block.train()
    edits = [
        Attach(Address(owner, "torch.relu"), Address(owner, "self.conv1"), "conv1_salience", WEIGHTING),
        Attach(Address(owner, "self.bn2"), Address(owner, "self.conv2"), "conv2_salience", WEIGHTING),
    ]
    edited(network, edits, [owner])
    assert [name for name, _ in block.named_children()] == ["conv1", "bn1", "conv1_salience", "conv2", "bn2", "conv2_salience"]
    assert block.conv1_salience.training
    block.eval()
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        hidden = block.conv1_salience(torch.relu(block.bn1(block.conv1(x))), x)
        expected = torch.relu(block.conv2_salience(block.bn2(block.conv2(hidden)), hidden) + x)
        assert torch.equal(block(x), expected)
        assert torch.equal(copy.deepcopy(block)(x), expected)


@pytest.mark.usefixtures("test_layers")
def test_layers_attached_behind_a_shared_activation_stand_in_the_order_they_run() -> None:
    network, _ = planned()
    owner = "blocks.1"
    spec = LayerSpec("engine.Weighting", {"channels": 8})
    pairs = ((0, "conv1"), (1, "conv2"))
    edited(network, [Attach(Address(owner, "self.relu", i), Address(owner, f"self.{c}"), f"{c}_salience", spec) for i, c in pairs], [owner])
    names = [name for name, _ in network.blocks[1].named_children()]
    assert names[names.index("relu") :][:3] == ["relu", "conv1_salience", "conv2_salience"]


class Chain(nn.Sequential):
    """A container with hooks and a train mode of its own: ``[B, 3, H, W] -> [B, 4, H, W]``."""


@pytest.mark.usefixtures("test_layers")
@pytest.mark.parametrize("container", [nn.Sequential, Chain])
def test_a_layer_attached_in_a_sequential_is_given_both_tensors(container: type[nn.Sequential]) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(32, 4, 1))
    network = container(*layers).eval()
    fired: list[str] = []
    network[2].register_forward_hook(lambda *_: fired.append("relu"))
    network.register_forward_hook(lambda *_: fired.append("network"))
    edited(network, [Attach(Address("", "self.2"), Address("", "self.0"), "0_salience", WEIGHTING)], [""])
    assert list(network._modules) == ["0", "1", "2", "0_salience", "3", "4"]
    conv, norm, relu, dropout, last = layers
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        gate = network.get_submodule("0_salience")
        expected = last(dropout(gate(relu(norm(conv(x))), x)))
        fired.clear()
        assert torch.equal(network(x), expected)
        assert fired == ["relu", "network"]
        assert torch.equal(copy.deepcopy(network)(x), expected)
        assert not torch.equal(network.train()(x), network(x)), "dropout is alive"


@pytest.mark.usefixtures("test_layers")
def test_a_replaced_call_hands_over_its_tensors_in_order_and_its_module_goes() -> None:
    network, _ = planned()
    block, owner = network.blocks[2], "blocks.2"
    adds = Address(owner, "operator.add")
    edited(network, [Replace(adds, "difference", LayerSpec("engine.Difference"))], [owner])
    x = torch.randn(2, 32, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(x), torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))) - x))
    sequential = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)).eval()
    pix = LayerSpec("pix.PickOrMix", {"in_channels": 32, "out_channels": 4})
    edited(sequential, [Replace(Address("", "self.2"), "mix", pix)], [""])
    assert list(sequential._modules) == ["0", "1", "mix"]
    assert sequential(torch.randn(1, 3, 8, 8)).shape == (1, 4, 6, 6)
    assert type(sequential).forward is nn.Sequential.forward


@pytest.mark.usefixtures("test_layers")
def test_attached_replaced_and_scaled_networks_are_replayed_on_a_skeleton() -> None:
    network, _ = planned()
    skeleton = meta_copy(network)
    owner = "blocks.2"
    edits = [
        Attach(Address(owner, "self.bn2"), Address(owner, "self.conv2"), "conv2_salience", WEIGHTING),
        Replace(Address(owner, "operator.add"), "difference", LayerSpec("engine.Difference")),
        Scale("blocks.2.bn2", "out", 2.0),
    ]
    hashes = edited(network, edits, [owner])
    assert perform(skeleton, edits, {owner: {}}, seed=None, expected=hashes) == hashes
    assert str(skeleton) == str(network)
    skeleton.to_empty(device="cpu").load_state_dict(network.state_dict())
    x = torch.randn(2, *SIZE)
    assert torch.equal(skeleton.eval()(x), network(x))
    with pytest.raises(ChangedUnderneath):
        perform(meta_copy(planned()[0]), edits, {owner: {}}, seed=None, expected={owner: "another"})


@pytest.mark.usefixtures("test_layers")
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (Attach(Address("blocks.2", "self.conv1"), Address("blocks.2", "self.conv2"), "gate", WEIGHTING), "runs later"),
        (Attach(Address("blocks.2", "self.bn1"), Address("blocks.2", "self.conv9"), "gate", WEIGHTING), "was not found"),
        (Attach(Address("blocks.2", "self.bn1"), Address("blocks.2", "self.conv1"), "bn2", WEIGHTING), "exists already"),
        (Replace(Address("blocks.2", "operator.add"), "bn2", WEIGHTING), "exists already"),
        (Scale("blocks.9", "out", 2.0), "no module"),
        (Scale("dropout", "out", 2.0), "has no rule for being scaled"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit: Any, reason: str) -> None:
    with pytest.raises(chansurg.Refusal, match=reason):
        edited(planned()[0], [edit], ["blocks.2"])


class WithBias(nn.Module):
    """Adds what a child makes of nothing: ``[B, 4] -> [B, 4]``."""

    class Bias(nn.Module):
        def forward(self) -> torch.Tensor:
            return torch.zeros(4)

    def __init__(self) -> None:
        super().__init__()
        self.bias = self.Bias()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.bias()


@pytest.mark.parametrize("edit", [Insert(Address("", "self.bias"), "gate", WEIGHTING), Bypass(Address("", "self.bias"))])
def test_a_call_without_an_input_is_no_place_for_an_edit(edit: Any) -> None:
    with pytest.raises(chansurg.Refusal, match="The call bias has no input"):
        edited(WithBias(), [edit], [""])


def test_an_edit_of_no_known_kind_is_not_passed_over() -> None:
    class Unknown:
        path = "fc"

    with pytest.raises(AssertionError, match="unreachable"):
        edited(planned()[0], [Unknown()], [])


def test_the_engine_and_recipes_have_only_the_layers_they_have() -> None:
    for kind, owner in (("engine.Nothing", "The engine"), ("pix.Nothing", "The recipe 'pix'")):
        with pytest.raises(chansurg.InputError, match=f"{owner} has no layer 'Nothing'"):
            build_layer(LayerSpec(kind), "somewhere", None, (torch.device("cpu"), torch.float32))
