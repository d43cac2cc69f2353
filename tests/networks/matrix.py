"""Every recipe, with its modes and options, on networks of every kind: the cases of the matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import chansurg
from networks import small


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to convert: how it is built, the side of its images, and the factory that loading has to be told of, if any."""

    name: str
    build: Callable[[], nn.Module]
    side: int = 32
    factory: str | None = None

    def __str__(self) -> str:
        return self.name

    def inputs(self, batch_size: int = 2) -> Tensor:
        return torch.randn(batch_size, 3, self.side, self.side, generator=torch.Generator().manual_seed(1))


def of_torchvision(name: str, side: int = 64, **arguments: Any) -> Network:
    return Network(name, lambda: torchvision.models.get_model(name, weights=None, **arguments), side)


def of_factory(name: str, side: int = 32, needs: str | None = None) -> Network:
    def build() -> nn.Module:
        if needs is not None:
            pytest.importorskip(needs)
        return getattr(small, name)()

    return Network(name, build, side, f"networks.small:{name}")


def of_timm(name: str, side: int) -> Network:
    return Network(f"timm-{name}", lambda: pytest.importorskip("timm").create_model(name), side)


SMALL = [
    of_factory("small"),
    of_factory("tied"),
    Network("cifar-resnet20", lambda: chansurg.load("cifar/resnet20")),
    of_factory("vision_transformer"),
    of_factory("swin"),
    of_factory("convnext", 64),
    of_factory("beit", needs="timm"),
    of_factory("levit", 64, needs="timm"),
]
FEW = [network for network in SMALL if network.name in ("small", "tied", "vision_transformer", "convnext")]
LARGE = [
    of_torchvision("resnet18"),
    of_torchvision("mobilenet_v2"),
    of_torchvision("densenet121"),
    of_torchvision("regnet_y_400mf"),
    of_timm("mobilenetv1_100", 64),
]

# Recipes whose conversion by itself is the same function, whatever the options.
PRESERVING = {"pcs"}

# Where a recipe has nothing to do: (recipe, its option, the option's value) -> networks; with no option, whatever the options.
NOWHERE: dict[tuple[str, str, str], set[str]] = {
    ("pix", "mode", "squeeze"): {"levit", "cifar-resnet20", "resnet18", "mobilenet_v2", "regnet_y_400mf", "timm-mobilenetv1_100"},
    ("pix", "mode", "downscale"): {"vision_transformer", "swin", "beit"},
    ("mod", "", ""): {"vision_transformer", "swin", "beit", "levit", "densenet121"},
    ("slimconv", "", ""): {"vision_transformer", "swin", "beit", "levit", "densenet121"},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One recipe with one choice of options on one network."""

    network: Network
    recipe: str
    options: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return "-".join([self.recipe, str(self.network), *(f"{value}" for _, value in self.options)])

    @property
    def applies(self) -> bool:
        return not any(
            self.recipe == recipe and self.network.name in networks and (not name or (name, value) in self.options)
            for (recipe, name, value), networks in NOWHERE.items()
        )

    def convert(self, network: nn.Module, **arguments: Any) -> nn.Module:
        size = (3, self.network.side, self.network.side)
        return chansurg.convert(network, self.recipe, input_size=size, **{**dict(self.options), **arguments})


NEEDS_IMAGES = ("subsets", "fitted")


def option_sets(recipe: str, *, every: bool) -> list[tuple[tuple[str, Any], ...]]:
    """The modes of a recipe; with ``every`` each choice of each of its options once, too."""
    fields = [field for field in dataclasses.fields(chansurg.installed_recipes()[recipe].Options) if field.metadata["choices"]]
    modes = [(("mode", mode),) for field in fields if field.name == "mode" for mode in field.metadata["choices"]] or [()]
    choices = [(f.name, choice) for f in fields if f.name != "mode" for choice in f.metadata["choices"] if choice != f.default]
    others = [(choice,) for choice in choices if choice != NEEDS_IMAGES]
    return [*modes, *((*modes[-1], *other) for other in (others if every else []))]


def cases(networks: list[Network], *, every: bool = False) -> list[Any]:
    found = [
        Case(n, recipe, options)
        for n in networks
        for recipe in chansurg.installed_recipes()
        for options in option_sets(recipe, every=every)
    ]
    return [pytest.param(case, id=str(case)) for case in found if case.applies]


def lively(network: nn.Module, x: Tensor) -> nn.Module:
    """The network with statistics of its own activations and nothing left at zero, as if it had been trained, in eval mode."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
        for norm in norms:
            norm.momentum = 1.0
        network.train()(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return network.eval()


@cache
def original(network: Network) -> nn.Module:
    torch.manual_seed(0)
    return lively(network.build(), network.inputs(4))


@cache
def converted(case: Case) -> nn.Module:
    return case.convert(original(case.network))
