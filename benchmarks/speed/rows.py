"""What is compared: networks, and the ways in which each is made smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

import chansurg


@dataclass(frozen=True)
class Row:
    """One way to a smaller network.

    Args:
        title: what the table calls it.
        make: the smaller network.
    """

    title: str
    make: Callable[[nn.Module], nn.Module]


def original(name: str, input_size: int) -> nn.Module:
    """The network itself, with random weights that are the same each time."""
    torch.manual_seed(0)
    return chansurg.load(name, input_size=(input_size,))


def sliced_to_half(network: nn.Module, multiple_of: int = 16) -> nn.Module:
    """PCS without its training: channels drawn at random go, as many at each site, until half of the multiply-accumulates are left.

    It is sliced as a deployer would: saliences frozen, additions coupled, widths in multiples that processors compute with.
    """
    gated = chansurg.convert(network, "pcs")
    whole = chansurg.count(network).macs
    low, high = 0.0, 1.0
    best = gated
    for _ in range(6):
        share = (low + high) / 2
        best = chansurg.slice(gated, masks=_masks(gated, share), freeze_salience=True, residual="coupled", multiple_of=multiple_of)
        low, high = (share, high) if chansurg.count(best).macs < whole / 2 else (low, share)
    return best


def _masks(gated: nn.Module, share: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    masks = {}
    for path, mask in chansurg.masks(gated).items():
        order = torch.randperm(len(mask), generator=generator)
        kept = torch.zeros_like(mask)
        kept[order[: max(1, round(share * len(mask)))]] = True
        masks[path] = kept
    return masks


ROWS: Mapping[str, Row] = {
    "pix": Row("PiX squeeze", lambda network: chansurg.convert(network, "pix")),
    "pix-downscale": Row("PiX downscale", lambda network: chansurg.convert(network, "pix", mode="downscale")),
    "mod": Row("MoD, c = 64", lambda network: chansurg.convert(network, "mod", c=64)),
    "slimconv-4/3": Row("SlimConv 4/3", lambda network: chansurg.convert(network, "slimconv", k="4/3")),
    "slimconv-8/3": Row("SlimConv 8/3", lambda network: chansurg.convert(network, "slimconv", k="8/3")),
    "pcs": Row("PCS, sliced to half the MACs", sliced_to_half),
}

NETWORKS: Mapping[str, tuple[str, ...]] = {
    "resnet50": ("pix", "mod", "slimconv-4/3", "slimconv-8/3"),
    "resnet18": ("pcs", "mod"),
    "resnet101": ("pix", "mod", "slimconv-4/3", "slimconv-8/3"),
    "resnet152": ("pix", "mod", "slimconv-4/3", "slimconv-8/3"),
    "mobilenet_v2": ("pix-downscale", "mod", "pcs"),
    "resnext50_32x4d": ("pix", "mod", "slimconv-8/3"),
    "vgg16": ("pix-downscale", "mod", "slimconv-8/3", "pcs"),
}
"""The networks of the table, each with the rows that are meant for it."""
