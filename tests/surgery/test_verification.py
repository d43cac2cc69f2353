"""Same function or not, and where two networks part."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from networks import small
from torch import Tensor, nn

import chansurg

SIZE = (3, 16, 16)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return small.small().eval()


def test_a_network_equals_itself_and_its_copy_to_the_bit(network: nn.Module) -> None:
    for other in (network, copy.deepcopy(network)):
        verdict = chansurg.verify(network, other, input_size=SIZE)
        assert verdict.equal
        assert (verdict.max_abs_error, verdict.max_rel_error, verdict.agreement, verdict.first_difference) == (0.0, 0.0, 1.0, None)
        assert verdict.inputs == 4
        assert set(verdict.blocks.values()) == {0.0}
    assert next(iter(verdict.blocks)) == "stem"


@pytest.mark.parametrize("path", ["stem", "blocks.0.bn2", "blocks.1.conv3", "blocks.2.conv1", "fc"])
def test_one_changed_number_is_found_where_it_is(network: nn.Module, path: str) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule(path).weight.view(-1)[0] += 3
    verdict = chansurg.verify(network, other, input_size=SIZE)
    assert not verdict.equal
    assert verdict.first_difference == path
    before = list(verdict.blocks)[: list(verdict.blocks).index(path)]
    assert all(verdict.blocks[name] == 0 for name in before)
    assert chansurg.verify(other, network, input_size=SIZE).first_difference == path


def test_what_only_training_sees_makes_no_difference_and_modes_are_given_back(network: nn.Module) -> None:
    other = copy.deepcopy(network)
    other.dropout.p = 0.9
    other.train()
    other.blocks[0].eval()
    modes = [module.training for module in other.modules()]
    statistics = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert chansurg.verify(network, other, input_size=SIZE).equal
    assert [module.training for module in other.modules()] == modes
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in statistics.items())
    assert not any(module._forward_hooks for module in other.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_a_difference_on_one_side_only(network: nn.Module, value: float) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.fc.bias[1] = value
    for a, b in ((network, other), (other, network)):
        verdict = chansurg.verify(a, b, input_size=SIZE)
        assert not verdict.equal
        assert verdict.max_abs_error == math.inf
        assert verdict.first_difference == "fc"
        json.dumps(verdict.as_json(), allow_nan=False)
    assert chansurg.verify(other, copy.deepcopy(other), input_size=SIZE).equal


def test_rounding_of_the_coarser_precision_is_allowed(network: nn.Module) -> None:
    half = copy.deepcopy(network).bfloat16()
    verdict = chansurg.verify(network, half, input_size=SIZE)
    assert 0 < verdict.max_rel_error < 0.05
    assert verdict.equal
    double = copy.deepcopy(network).double()
    with torch.no_grad():
        double.fc.weight.mul_(1 + 1e-7)
    assert not chansurg.verify(copy.deepcopy(network).double(), double, input_size=SIZE).equal


def test_a_conversion_differs_first_at_its_first_site(network: nn.Module) -> None:
    verdict = chansurg.verify(network, chansurg.convert(network, "pix", input_size=SIZE), input_size=SIZE)
    assert not verdict.equal
    assert verdict.first_difference == "blocks.0.conv1"
    assert verdict.blocks["stem"] == 0.0


def test_other_outputs_cannot_be_compared(network: nn.Module) -> None:
    other = copy.deepcopy(network)
    other.fc = nn.Linear(32, 7)
    verdict = chansurg.verify(network, other, input_size=SIZE)
    assert not verdict.equal
    assert "[[1, 5]] and" in (verdict.reason or "")
    json.dumps(verdict.as_json(), allow_nan=False)


class Counting(nn.Module):
    """Puts out no floating-point tensor at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> int:
        return len(self.conv(x))


def test_nothing_to_compare_is_not_the_same() -> None:
    verdict = chansurg.verify(Counting(), Counting(), input_size=SIZE)
    assert not verdict.equal
    assert "no floating-point tensors" in (verdict.reason or "")


def test_an_input_that_does_not_fit_is_an_input_error(network: nn.Module) -> None:
    with pytest.raises(chansurg.InputError, match="cannot run on inputs of shape"):
        chansurg.verify(network, network, input_size=(5, 16, 16))
    assert not any(module._forward_hooks for module in network.modules())
