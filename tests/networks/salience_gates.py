"""Salience gates of their own, without a network around them, and what they are called with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chansurg.recipes.pcs.layer import SalienceGate

SHAPES = {
    "map": ((3, 8, 5, 4), (3, 12, 10, 8), 1),
    "tokens": ((3, 7, 8), (3, 7, 12), -1),
    "map with channels last": ((3, 5, 4, 8), (3, 5, 4, 12), -1),
    "vector": ((3, 8), (3, 12), 1),
    "sequence": ((3, 8, 6), (3, 12, 6), 1),
}


def gate(in_channels: int = 12, entries: int = 8, *, lively: bool = True, **arguments: Any) -> SalienceGate:
    """A gate whose saliences lie everywhere from 0 to 1, 0 and 1 included."""
    made = SalienceGate(in_channels, entries, **arguments)
    generator = torch.Generator().manual_seed(0)
    made.reset_parameters(generator)
    if lively:
        nn.init.normal_(made.fc2.weight, std=3.0, generator=generator)
        nn.init.normal_(made.fc2.bias, std=3.0, generator=generator)
        made.running_salience.uniform_(generator=generator)
    return made


def inputs(name: str = "map", seed: int = 1) -> tuple[Tensor, Tensor]:
    features, source, _ = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features, generator=generator), torch.randn(source, generator=generator) + 0.5
