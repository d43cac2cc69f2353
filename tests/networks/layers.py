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


class Selecting(RecipeLayer):
    """The first ``kept`` channels, each times a gate that is a number an image: ``[B, C, …] -> ([B, kept, …], [B, kept])``."""

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        self.kept = kept
        self.weight = nn.Parameter(torch.empty(channels))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        note = torch.sigmoid(x.flatten(2).mean(2) * self.weight)[:, : self.kept]
        return x[:, : self.kept] * note.reshape(*note.shape, *(1,) * (x.ndim - 2)), note


class Fusing(RecipeLayer):
    """Adds the branch, times the note, to the first channels that pass it by: ``[B, C, …], [B, k, …], [B, k] -> [B, C, …]``."""

    def forward(self, passing: Tensor, branch: Tensor, note: Tensor) -> Tensor:
        kept = branch.shape[1]
        weighted = branch * note.reshape(*note.shape, *(1,) * (branch.ndim - 2))
        return torch.cat([passing[:, :kept] + weighted, passing[:, kept:]], 1)
