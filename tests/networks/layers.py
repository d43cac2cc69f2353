"""Layers that tests put into networks in a recipe's name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chansurg.surgery.layer import RecipeLayer


class Weighting(RecipeLayer):
    """``features * sigmoid(weight * mean of source)``: ``[B, C, …], [B, D, …] -> [B, C, …]``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, generator=generator)

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        salience = torch.sigmoid(source.flatten(1).mean(1, keepdim=True) * self.weight)
        return features * salience.reshape(*salience.shape, *(1,) * (features.ndim - 2))


class Difference(RecipeLayer):
    """``first - second``, where one and the other are not the same."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second
