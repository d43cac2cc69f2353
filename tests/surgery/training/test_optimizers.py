from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from safetensors.torch import load, save
from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.checkpoints import optimizer_state, restore_optimizer
from chansurg.surgery.training.optimizers import OPTIMIZERS, build_optimizer, default_learning_rate, parameter_groups
from tests.networks import small
from tests.networks.learning_gates import Gated

NETWORKS: list[Callable[[], nn.Module]] = [
    small.small,
    small.tied,
    small.swin,
    small.convnext,
    small.vision_transformer,
    torchvision.models.resnet18,
    Gated,
]


@pytest.mark.parametrize("build", NETWORKS)
def test_every_trainable_parameter_is_in_one_group_once(build: Callable[[], nn.Module]) -> None:
    network = build()
    frozen = next(network.parameters()).requires_grad_(False)
    grouped = [id(parameter) for group in parameter_groups(network, 0.1) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters() if parameter is not frozen)


def names(network: nn.Module, decay: float) -> set[str]:
    found = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [group for group in parameter_groups(network, 0.1) if group["weight_decay"] == decay]
    return {found[id(parameter)] for group in groups for parameter in group["params"]}


def test_norms_biases_and_what_a_layer_protects_do_not_decay() -> None:
    assert names(Gated(), 0.1) == {"conv1.weight", "conv2.weight", "fc.weight"}
    norm = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm([2, 3]))
    assert names(norm, 0.0) == {"0.bias", "1.weight", "1.bias"}
    assert names(nn.DataParallel(Gated()).module, 0.1) == names(Gated(), 0.1)


def test_networks_with_nothing_to_train() -> None:
    with pytest.raises(InputError, match="no parameter that can be trained"):
        parameter_groups(small.small().requires_grad_(False), 0.1)


def test_sgd_with_nesterov_momentum_is_the_formula() -> None:
    layer = nn.Linear(2, 2, bias=False)
    weight = layer.weight.detach().clone().double()
    optimizer = build_optimizer(layer, "sgd", lr=0.1, weight_decay=0.01, momentum=0.9)
    velocity = torch.zeros_like(weight)
    for step in range(4):
        layer.weight.grad = torch.full((2, 2), float(step + 1))
        optimizer.step()
        gradient = step + 1 + 0.01 * weight
        velocity = gradient if step == 0 else 0.9 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.9 * velocity)
    assert torch.allclose(layer.weight.double(), weight, atol=1e-6)


def test_momentum_and_its_form_are_options() -> None:
    plain = build_optimizer(nn.Linear(2, 2), lr=0.1, momentum=0.5, nesterov=False).param_groups[0]
    assert (plain["momentum"], plain["nesterov"]) == (0.5, False)
    assert build_optimizer(nn.Linear(2, 2), lr=0.1, momentum=0.0).param_groups[0]["nesterov"] is False


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_leaves_protected_weights_undecayed(name: str) -> None:
    if name not in ("sgd", "adamw"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x, y = torch.randn(64, 8), torch.randn(64, 1)
    optimizer = build_optimizer(network, name, lr=default_learning_rate(name, 256), weight_decay=0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    losses = []
    for _ in range(30):
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_its_checkpoint_to_the_bit(name: str) -> None:
    if name not in ("sgd", "adamw"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    whole, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(8, 4)

    def train(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()

    optimizer = build_optimizer(whole, name, lr=0.01, weight_decay=0.1)
    train(whole, optimizer)
    broken = copy.deepcopy(whole)
    resumed = build_optimizer(broken, name, lr=0.01, weight_decay=0.1)
    tensors, facts = optimizer_state(optimizer)
    restore_optimizer(resumed, load(save(tensors)), json.loads(json.dumps(facts)))
    train(whole, optimizer)
    train(broken, resumed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))


def test_without_timm_its_optimizers_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(InputError, match="timm is not installed") as caught:
        build_optimizer(nn.Linear(2, 2), "lamb", lr=0.1)
    assert "pip install chansurg[timm]" in caught.value.to_do
    assert build_optimizer(nn.Linear(2, 2), "adamw", lr=0.1).param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("call", [lambda name: default_learning_rate(name, 1), lambda name: build_optimizer(nn.Linear(1, 1), name, lr=1)])
def test_unknown_names_list_the_known_ones(call: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match="no optimizer 'sdg'") as caught:
        call("sdg")
    assert all(name in caught.value.to_do for name in OPTIMIZERS)


def test_the_default_rate_grows_with_the_batch() -> None:
    assert default_learning_rate("sgd", 128) == 0.05
    assert default_learning_rate("adamw", 512) == pytest.approx(5e-4)
