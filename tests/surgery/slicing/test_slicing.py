"""The whole way: masks in, a smaller network with its journal out; files, frozen salience, and refusals."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.gated import draw_masks
from torch import nn

import chansurg
from chansurg.surgery.counting import count
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.gating import Gate, gates
from chansurg.surgery.slicing import slicing
from chansurg.surgery.slicing.cutting import Cut
from chansurg.surgery.slicing.proof import TOLERANCE

SIZE = (3, 32, 32)


@cache
def _converted() -> nn.Module:
    torch.manual_seed(0)
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pcs")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
            if isinstance(module, Gate):
                module.running_salience.copy_(torch.rand(module.entries, generator=generator))
    return network


def converted(share: float = 0.5) -> nn.Module:
    network = copy.deepcopy(_converted())
    if share:
        draw_masks(network, share, torch.Generator().manual_seed(2))
    return network


def result(network: nn.Module) -> Any:
    return chansurg.record_of(network).journal[-1]


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return chansurg.slice(converted())


def test_the_journal_says_what_was_done_and_how_it_was_checked(small: nn.Module) -> None:
    network, entry = converted(), result(small)
    assert (entry.kind, entry.recipe) == ("slice", "slice")
    assert entry.options == {"residual": "scatter", "freeze_salience": False, "multiple_of": 1, "masks": None}
    assert entry.before == count(network).as_json()
    assert entry.after == count(small).as_json()
    assert entry.after["macs"] < 0.5 * entry.before["macs"]
    proof = entry.results
    assert 0 < proof["max_rel_error"] <= proof["tolerance"] == TOLERANCE[torch.float32]
    assert 0 < proof["max_rel_error_float64"] <= proof["tolerance_float64"] == TOLERANCE[torch.float64]
    assert proof["sizes"] == [[3, 32, 32], [3, 40, 40], [3, 24, 24]]
    assert proof["images"] == 21
    assert proof["masking_drift"] > 0.1
    assert proof["removed"]["layer1.0.conv1"] == int((~chansurg.masks(network)["layer1.0.conv1_salience"]).sum())
    assert len(proof["reasons"]["layer1.0.conv1"]) == 1
    assert proof["reasons"]["layer1.0.conv1"][0]["reason"] == "exactly zero behind layer1.0.conv1_salience"


def test_it_computes_the_same_and_the_given_network_is_left_alone(small: nn.Module) -> None:
    network = converted()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    again = chansurg.slice(network)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in before.items())
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), again.state_dict().values(), strict=True))
    assert chansurg.verify(network, small).equal
    assert not chansurg.verify(converted(0), small).equal


def test_files_are_loaded_undone_and_sliced_and_converted_again(small: nn.Module, tmp_path: Path) -> None:
    network = converted()
    chansurg.save(network, tmp_path / "gated.safetensors")
    chansurg.save(chansurg.slice(chansurg.load(tmp_path / "gated.safetensors")), tmp_path / "small.safetensors")
    loaded = chansurg.load(tmp_path / "small.safetensors")
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
    assert result(loaded).results == result(chansurg.load(tmp_path / "small.safetensors")).results
    assert [entry.kind for entry in chansurg.history(tmp_path / "small.safetensors").journal] == ["convert", "slice"]
    chansurg.undo(tmp_path / "small.safetensors", output=tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "gated.safetensors").read_bytes()
    draw_masks(loaded, 0.3, torch.Generator().manual_seed(3))
    twice = chansurg.slice(loaded)
    assert chansurg.verify(loaded, twice).equal
    assert result(twice).after["macs"] < result(loaded).after["macs"]
    chansurg.save(twice, tmp_path / "twice.safetensors")
    with torch.no_grad():
        assert torch.equal(chansurg.load(tmp_path / "twice.safetensors")(x), twice(x))
    chansurg.save(chansurg.convert(twice, "pix", mode="downscale", zeta=2), tmp_path / "pix.safetensors")
    chansurg.load(tmp_path / "pix.safetensors")(x)


def test_a_sliced_network_goes_on_training(small: nn.Module) -> None:
    network = copy.deepcopy(small).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(network(torch.randn(4, *SIZE)), torch.arange(4)) + chansurg.recipe_loss(network, 0.1)).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def test_frozen_and_coupled_a_plain_network_comes_out() -> None:
    network = converted()
    plain = chansurg.slice(network, residual="coupled", freeze_salience=True)
    original = chansurg.load("cifar/resnet20")
    assert not gates(plain)
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in original.named_modules()]
    assert all(type(a) is type(b) for a, b in zip(plain.modules(), original.modules(), strict=True))
    frozen = copy.deepcopy(network)
    for path, gate in gates(network).items():
        frozen.set_submodule(path, Constant(gate))
    x = torch.randn(3, *SIZE).double()
    with torch.no_grad():
        expected, actual = frozen.double()(x), copy.deepcopy(plain).double()(x)
    assert (expected - actual).abs().max() < 1e-6 * expected.abs().max()  # the factors were multiplied in float32
    entry = result(plain)
    assert entry.results["max_rel_error_float64"] <= 1e-13
    assert entry.options["freeze_salience"] is True


class Constant(nn.Module):
    """A gate whose salience is its running value."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.register_buffer("salience", (gate.running_salience * gate.mask).repeat_interleave(gate.unit))

    def forward(self, features: torch.Tensor, source: torch.Tensor) -> Any:
        return features * self.get_buffer("salience").view(-1, 1, 1)


def test_frozen_without_masks_only_the_gates_go(tmp_path: Path) -> None:
    network = converted(0)
    plain = chansurg.slice(network, freeze_salience=True)
    assert not gates(plain)
    assert result(plain).after["params"] == count(chansurg.load("cifar/resnet20")).params
    chansurg.save(plain, tmp_path / "plain.safetensors")
    assert chansurg.verify(plain, chansurg.load(tmp_path / "plain.safetensors")).max_abs_error == 0


def test_multiples_stay_exactly_zero() -> None:
    network = converted(0.6)
    for freeze in (False, True):
        small = chansurg.slice(network, multiple_of=8, freeze_salience=freeze)
        convs = {path: module for path, module in small.named_modules() if isinstance(module, nn.Conv2d)}
        assert {conv.out_channels % 8 for conv in convs.values()} == {0}
        assert min(conv.out_channels for conv in convs.values()) == 8
        assert result(small).results["max_rel_error_float64"] <= 1e-13


def test_a_branch_through_a_layer_that_nothing_is_known_of_is_no_shortcut() -> None:
    torch.manual_seed(0)
    network = chansurg.convert(chansurg.convert(chansurg.load("cifar/resnet20"), "slimconv"), "pcs").eval()
    closing = gates(network)["layer3.1.conv2_salience"]
    closing.mask[::2] = False
    sliced = chansurg.slice(network)
    assert sliced.layer3[1].conv2.out_channels == 32
    x = torch.randn(2, *SIZE)
    with torch.no_grad():
        assert torch.allclose(sliced(x), network(x), rtol=1e-5, atol=1e-6)


def test_masks_of_ones_own() -> None:
    network = converted(0)
    own = {path: torch.rand(len(mask)) > 0.5 for path, mask in chansurg.masks(network).items() if "conv1" in path}
    for mask in own.values():
        mask[0] = True
    small = chansurg.slice(network, masks=own)
    assert all(gate.mask.all() for gate in gates(network).values())
    assert small.get_submodule("layer1.0.conv1").out_channels == int(own["layer1.0.conv1_salience"].sum())
    assert result(small).options["masks"]["layer1.0.conv1_salience"] == (~own["layer1.0.conv1_salience"]).nonzero()[:, 0].tolist()


def test_nothing_to_remove_is_said() -> None:
    with pytest.raises(Refusal, match="the masks keep every channel") as refused:
        chansurg.slice(converted(0))
    assert "finetune" in refused.value.to_do
    network = converted(0)
    gates(network)["conv1_salience"].mask[0] = False
    with pytest.raises(Refusal, match=r"conv1_salience: it is not zero where layer1\.1\.conv1 reads it"):
        chansurg.slice(network)


def test_a_network_without_gates_and_masks_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="has no gate"):
        chansurg.slice(chansurg.load("cifar/resnet20"))
    for wrong in ({"nowhere": torch.ones(3, dtype=torch.bool)}, {"conv1_salience": torch.ones(3, dtype=torch.bool)}):
        with pytest.raises(InputError, match="does not fit"):
            chansurg.slice(converted(), masks=wrong)
    with pytest.raises(InputError, match="wrapped"):
        chansurg.slice(nn.DataParallel(converted()))


def test_what_is_not_the_same_is_refused_with_the_block_where_it_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(*arguments: Any) -> Cut:
        made = cut(*arguments)
        wrong = [edit for edit in made.edits if edit.path == "layer2.1.bn1"]
        kept = wrong[0].out_channels
        made.edits[made.edits.index(wrong[0])] = type(wrong[0])("layer2.1.bn1", None, (*kept[1:], kept[0]))
        return made

    cut = slicing.cut
    monkeypatch.setattr(slicing, "cut", careless)
    with pytest.raises(Refusal, match="not the masked one") as refused:
        chansurg.slice(converted())
    assert refused.value.where.startswith("they part at layer2.1")
    assert "nothing was written" in refused.value.not_done
