"""Which norms give way and which stay, and that what is left computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import chansurg
from chansurg.surgery.delivery.optimizing import optimization_of

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()


def lively(network: nn.Module) -> nn.Module:
    """Every norm with statistics, scales and shifts of its own; in float64, so that nothing but a mistake makes a difference."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        for name, low, high in (("running_mean", -1.0, 1.0), ("running_var", 0.2, 3.0), ("weight", -2.0, 2.0), ("bias", -1.0, 1.0)):
            tensor = getattr(module, name, None)
            if isinstance(tensor, Tensor) and hasattr(module, "running_var"):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return network.double().eval()


def norms(network: nn.Module) -> int:
    return sum(1 for module in network.modules() if getattr(module, "running_var", None) is not None)


class Wired(nn.Module):
    """A network whose forward is given."""

    def __init__(self, forward: object, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.wiring = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.wiring(self, x)


class Standardised(nn.Conv2d):
    """Takes every factor out of its weight again, as weight standardisation does."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


FOLDED = {
    "conv": nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "biased": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
    "grouped": nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "depthwise": nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3)),
    "no numbers": nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)),
    "transposed groups": nn.Sequential(nn.ConvTranspose2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
    "three dimensions": nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4)),
    "one dimension": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.BatchNorm1d(8)),
    "instance": nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "frozen": nn.Sequential(nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8)),
    "dropout between": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8)),
    "positions": Wired(
        lambda self, x: self.norm((y := self.fc(x.flatten(2).mT)).flatten(0, 1)).reshape_as(y), fc=nn.Linear(3, 8), norm=nn.BatchNorm1d(8)
    ),
    "joined": Wired(
        lambda self, x: torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1))),
        a=nn.Conv2d(3, 5, 3),
        b=nn.Conv2d(3, 2, 3, bias=False),
        norm=nn.BatchNorm2d(7),
    ),
    "ahead of a linear layer": nn.Sequential(nn.Flatten(), nn.BatchNorm1d(432), nn.Dropout(), nn.Linear(432, 5, bias=False)),
    "ahead of a conv": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, groups=3)),
    "both sides": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)),
}


@pytest.mark.parametrize("kind", FOLDED)
def test_it_gives_way_to_the_layer_beside_it(kind: str) -> None:
    network = lively(copy.deepcopy(FOLDED[kind]))
    made = chansurg.optimize(network, X)
    assert norms(network) > norms(made) == 0
    with torch.no_grad():
        expected = network(X.clone())
        assert torch.allclose(made(X.clone()), expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(lively_without_norms(network)(X.clone()), expected, rtol=1e-2), "the norms change nothing here"


def lively_without_norms(network: nn.Module) -> nn.Module:
    bare = copy.deepcopy(network)
    for module in bare.modules():
        for name, child in list(module.named_children()):
            if getattr(child, "running_var", None) is not None:
                setattr(module, name, nn.Identity())
    return bare


SHARED = nn.Conv2d(3, 3, 3, padding=1)
STAYING = {
    "another activation between": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.BatchNorm2d(8), nn.ReLU()), "GELU"),
    "a second reader": (
        Wired(lambda self, x: self.norm(y := self.conv(x)) + y, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8)),
        "read by others",
    ),
    "ahead of padding": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)), "placeholder"),
    "statistics of the batch": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)), None),
    "other channels": (nn.Sequential(nn.Flatten(2), nn.Linear(144, 8), nn.BatchNorm1d(3)), "another axis"),
    "a shared conv": (
        nn.Sequential(SHARED, nn.BatchNorm2d(3), nn.ReLU(), SHARED, nn.BatchNorm2d(3), nn.ReLU()),
        "called more than once|several names",
    ),
    "a computed weight": (nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)), "computed"),
    "a standardised weight": (nn.Sequential(Standardised(3, 8, 3), nn.BatchNorm2d(8)), "more than its kind"),
    "joined with itself": (
        Wired(lambda self, x: self.norm(torch.cat([y := self.conv(x), y], 1)), conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(8)),
        "cat|read by others",
    ),
    "in another order": (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2), nn.BatchNorm2d(8)),
        "ChannelShuffle",
    ),
}


@pytest.mark.parametrize("kind", STAYING)
def test_it_stays_where_nobody_can_take_it_and_says_why(kind: str) -> None:
    network, reason = STAYING[kind]
    network = lively(copy.deepcopy(network))
    made = chansurg.optimize(network, X)
    told = optimization_of(made)
    assert told is not None
    assert told.folded == {}
    assert [type(m) for m in made.modules() if "Norm" in type(m).__name__] == [
        type(m) for m in network.modules() if "Norm" in type(m).__name__
    ]
    if reason is not None:
        assert told.left
        assert all(any(part in text for part in reason.split("|")) for text in told.left.values()), told.left
    with torch.no_grad():
        assert torch.allclose(made(X.clone()), network(X.clone()), rtol=1e-12, atol=1e-12)


def test_norms_with_an_activation_of_their_own_leave_it_behind() -> None:
    layers = pytest.importorskip("timm.layers")
    network = lively(nn.Sequential(nn.Conv2d(3, 8, 3), layers.BatchNormAct2d(8, act_layer=nn.SiLU)))
    made = chansurg.optimize(network, X)
    assert norms(made) == 0
    assert any(isinstance(module, nn.SiLU) for module in made.modules())
    with torch.no_grad():
        assert torch.allclose(made(X), network(X), rtol=1e-12, atol=1e-12)


def test_a_folded_layer_keeps_its_memory_format_and_its_name() -> None:
    network = lively(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)))
    made = chansurg.optimize(network, X, layout="channels_last")
    assert set(made.state_dict()) == {"0.weight", "0.bias"}
    assert made.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert chansurg.optimize(network, X, layout="contiguous").get_parameter("0.weight").is_contiguous()
