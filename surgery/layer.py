"""The base of every layer that a recipe puts into a network."""

from __future__ import annotations

import torch
from torch import nn


class RecipeLayer(nn.Module):
    """A layer of a recipe: one call when traced, built from plain arguments, initialised reproducibly.

    A subclass takes JSON values only, so that a journal can build it again, and constructs on the meta device.
    """

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter anew, drawing from ``generator``."""
