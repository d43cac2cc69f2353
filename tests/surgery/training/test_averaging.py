from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.averaging import WeightAverage
from tests.networks.learning_gates import Gated


def train_a_step(network: nn.Module, seed: int) -> None:
    """Every parameter and statistic changes, and a gate may close."""
    generator = torch.Generator().manual_seed(seed)
    network.train()
    network(torch.randn(4, 3, 8, 8, generator=generator))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    if isinstance(network, Gated):
        network.gate1.mask = torch.rand(8, generator=generator) > 0.5
        network.gate1.running_salience = torch.rand(8, generator=generator)


@pytest.mark.parametrize("warmup", [True, False])
def test_it_is_the_recursion(warmup: bool) -> None:
    network = Gated()
    average, decay = WeightAverage(network, 0.8, warmup=warmup), 0.8
    expected: dict[str, torch.Tensor] = {}
    for count in range(8):
        train_a_step(network, count)
        average.update(network)
        keep = 0.0 if count == 0 else min(decay, (1 + count) / (10 + count)) if warmup else decay
        for name, value in network.state_dict().items():
            mean = name.endswith(("weight", "bias", "running_mean", "running_var"))
            expected[name] = keep * expected[name] + (1 - keep) * value.double() if mean and count else value.double().clone()
    state = average.model.state_dict()
    assert all(torch.allclose(state[name].double(), value, atol=1e-5) for name, value in expected.items())
    assert not torch.allclose(state["conv1.weight"], network.conv1.weight, atol=1e-2)


def test_gates_and_counters_are_the_trained_networks_own() -> None:
    network = Gated()
    average = WeightAverage(network, 0.99)
    for count in range(3):
        train_a_step(network, count)
        average.update(network)
        for name in ("mask", "running_salience", "importance"):
            assert torch.equal(getattr(average.model.gate1, name), getattr(network.gate1, name))
        assert average.model.bn1.num_batches_tracked == count + 1
    assert not torch.equal(average.model.bn1.running_mean, network.bn1.running_mean)


def test_the_average_is_a_network_of_its_own_in_eval_mode() -> None:
    network = Gated()
    average = WeightAverage(network, 0.9)
    assert not any(module.training for module in average.model.modules())
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    before = average.model.conv1.weight.clone()
    train_a_step(network, 0)
    assert torch.equal(average.model.conv1.weight, before)
    assert network.training
    assert network.conv1.weight.requires_grad


def test_restoring_goes_on_to_the_bit() -> None:
    network = Gated()
    whole, broken = WeightAverage(network, 0.9), WeightAverage(network, 0.9)
    for count in range(6):
        train_a_step(network, count)
        whole.update(network)
        broken.update(network)
        if count == 2:
            written = load(save(broken.state()))
            broken = WeightAverage(Gated(), 0.9)
            broken.restore(written)
            assert broken.updates == 3
    pairs = zip(whole.state().values(), broken.state().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_wrapped_networks_are_looked_into() -> None:
    network = Gated()
    wrapped = nn.DataParallel(network)
    average = WeightAverage(wrapped, 0.9)
    assert isinstance(average.model, Gated)
    train_a_step(network, 0)
    average.update(wrapped)
    assert torch.equal(average.model.conv1.weight, network.conv1.weight)


def test_half_precision() -> None:
    network = nn.Linear(2, 2).bfloat16()
    average = WeightAverage(network, 0.5, warmup=False)
    average.update(network)
    with torch.no_grad():
        network.weight += 1
    before = average.model.weight.clone()
    average.update(network)
    assert average.model.weight.dtype == torch.bfloat16
    assert torch.allclose(average.model.weight.float(), (before.float() + network.weight.float()) / 2, atol=1e-2)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0])
def test_impossible_decays(decay: float) -> None:
    with pytest.raises(InputError, match="averages nothing"):
        WeightAverage(nn.Linear(1, 1), decay)
