"""A small network with a repeated block whose branch computes on a selection, and whose tensors start as others: edits in one entry."""

from __future__ import annotations

import torch
from torch import nn

import chansurg
from chansurg.surgery.edits import Address, Edit, Inherit, LayerSpec, Narrow, Repeat, Route
from chansurg.surgery.plan import Plan

NAME = "networks.small:small"
KEPT = tuple(range(4, 12))
OWNER = "blocks.3"
EDITS: tuple[Edit, ...] = (
    Repeat("blocks.2", "3"),
    Narrow(f"{OWNER}.conv1", KEPT, KEPT),
    Narrow(f"{OWNER}.bn1", None, KEPT),
    Narrow(f"{OWNER}.conv2", KEPT, KEPT),
    Narrow(f"{OWNER}.bn2", None, KEPT),
    Route(
        (Address(OWNER, "self.conv1"),),
        Address(OWNER, "operator.add"),
        1,
        "selector",
        LayerSpec("engine.Selecting", {"channels": 32, "kept": 8}),
        "fusion",
        LayerSpec("engine.Fusing"),
    ),
    Inherit(f"{OWNER}.selector.weight", "blocks.2.bn1.weight"),
    Inherit(f"{OWNER}.bn2.bias", "blocks.2.bn1.bias", (KEPT,)),
)


def routed() -> nn.Module:
    """The network, in eval mode; the layers of ``tests/networks/layers.py`` must go by the engine's name (fixture ``test_layers``)."""
    start = chansurg.load(NAME, input_size=(16,))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return chansurg.apply(start, Plan("testing", 1, {}, (), EDITS, signatures={OWNER: {}}), inplace=True)
