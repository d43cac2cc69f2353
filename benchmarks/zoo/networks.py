"""Which networks the zoo holds: every builder of torchvision that is not quantized, and one network of each family of timm.

A family of timm is one of its modules; the network with the fewest parameters among its first dozen stands for it. Some more are named,
because a paper or a user asks for them. All are surveyed and planned for; large ones of which a smaller one of the same structure is there
are not run on numbers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from chansurg.surgery.errors import ChansurgError
from chansurg.surgery.reading.builders import build, parse_architecture

CANDIDATES = 12
"""How many networks of a family are looked at, in the order of their names, for the smallest."""
NAMED = (
    "convnext_atto",
    "densenet121",
    "efficientvit_m5",
    "inception_resnet_v2",
    "inception_v4",
    "legacy_seresnet50",
    "mobilenetv1_100",
    "regnety_002",
    "res2net50_26w_4s",
    "resnet50",
    "resnext50_32x4d",
    "seresnet50",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_tiny_patch16_224",
)
"""Networks of timm beside the one of each family."""
LARGEST = 45_000_000
"""Networks with more parameters are not run on numbers where one of the same structure has fewer."""
SIDES = (64, 96, 128, 192, 224)
"""Sides in pixels that are tried, so that the numbers come soon."""
_SIZES = re.compile(r"\d+|_(tiny|small|base|large|xx?s|[tsblh])(?=_|$)|[mg]f$")


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Args:
        name: what ``chansurg.load`` takes.
        family: the library's module that defines it.
        stand_in: a smaller network of the same structure, which is run on numbers in its place.
    """

    name: str
    family: str
    stand_in: str | None = None

    @property
    def source(self) -> str:
        """Its library."""
        return self.name.partition("/")[0]

    def input_size(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """``(C, H, W)``, or ``(C, T, H, W)`` for a network that takes clips, given the size its library names."""
        if self.family != "video":
            return image
        side = 224 if "mvit" in self.name or "s3d" in self.name else 112
        return (image[0], 16, side, side)

    def prepare(self, network: nn.Module) -> nn.Module:
        """Make a fresh network quick and its numbers telling: detectors see small images, statistics and biases are not all alike."""
        resizing = getattr(network, "transform", None)
        if hasattr(resizing, "min_size") and self.source == "torchvision" and "ssd" not in self.name:
            resizing.min_size, resizing.max_size = (128,), 192  # type: ignore[union-attr]
        return network

    def examples(self, network: nn.Module, size: tuple[int, ...], batch_size: int = 2) -> tuple[object, ...]:
        """Inputs from a normal distribution, as the network takes them; a detector in training mode takes boxes too."""
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(batch_size, *size, generator=generator)
        if self.family == "detection":
            images = list(image.sigmoid())
            return (images, [_target(self.name, size) for _ in images]) if network.training else (images,)
        if self.family == "optical_flow":
            return image.tanh(), image.flip(3).tanh()
        return (image,)


def _target(name: str, size: tuple[int, ...]) -> dict[str, torch.Tensor]:
    box = [8.0, 8.0, size[-1] - 24.0, size[-2] - 16.0]
    target = {"boxes": torch.tensor([box]), "labels": torch.tensor([1])}
    if "maskrcnn" in name:
        target["masks"] = torch.ones(1, *size[-2:], dtype=torch.uint8)
    if "keypointrcnn" in name:
        target["keypoints"] = torch.tensor([[[20.0, 20.0, 1.0]] * 17])
    return target


def networks() -> Iterator[Network]:
    """All of them, torchvision's first, in the order of their names."""
    from torchvision import models

    sizes: dict[str, float] = {}
    found: list[Network] = []
    for name in sorted(models.list_models()):
        if not name.startswith("quantized"):
            found.append(Network(f"torchvision/{name}", models.get_model_builder(name).__module__.split(".")[2]))
            sizes[found[-1].name] = _parameters(found[-1].name)
    for network in found:
        alike = [other.name for other in found if _SIZES.sub("", other.name) == _SIZES.sub("", network.name)]
        small = [name for name in alike if sizes[name] <= LARGEST]
        stand_in = max(small, key=sizes.__getitem__) if small else min(alike, key=sizes.__getitem__)
        yield network if network.name in (*small, stand_in) else replace(network, stand_in=stand_in)
    with suppress(ImportError):
        yield from sorted(set(_timm()), key=lambda network: network.name)


def _timm() -> Iterator[Network]:
    import timm

    known = set(timm.list_models())
    for family in sorted(timm.models.list_modules()):
        names = [name for name in sorted(timm.list_models(module=family)) if name in known][:CANDIDATES]
        sizes = {name: _parameters(f"timm/{name}") for name in names}
        if names:
            yield Network(f"timm/{min(names, key=lambda name: (sizes[name], name))}", family)
    for name in NAMED:
        yield Network(f"timm/{name}", timm.models.model_entrypoint(name).__module__.rpartition(".")[2])


def _parameters(name: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return sum(parameter.numel() for parameter in build(parse_architecture(name)).parameters())
        except ChansurgError:
            return float("inf")
