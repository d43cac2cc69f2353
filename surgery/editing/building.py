"""Building the layers that edits put into a network: a recipe's by its name, or the engine's own."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable

import torch
from torch import nn

from chansurg.surgery.edits import LayerSpec
from chansurg.surgery.errors import InputError
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.recipe import find_recipe

_ENGINE = "engine"
_ENGINE_LAYERS = {"ScatterAdd": "chansurg.surgery.slicing.scatter"}
"""Layers that the engine itself puts into networks, by the module that defines them."""


def build_layer(spec: LayerSpec, path: str, seed: int | None, home: tuple[torch.device, torch.dtype]) -> RecipeLayer:
    """Build a layer of a recipe, or of the engine itself, for ``path``.

    Its initialisation draws from a generator of its own, seeded by ``seed`` and the path, so that it does not depend on what else was
    built.

    Raises:
        InputError: where no installed recipe has such a layer.
    """
    layer_class = _layer_class(spec.kind, path)
    device, dtype = home
    with torch.device("meta"):
        layer = layer_class(**spec.arguments)
    if device.type == "meta":
        return layer.to(dtype=dtype)
    layer = layer.to_empty(device="cpu")
    if seed is not None:
        digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
        layer.reset_parameters(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return layer.to(device=device, dtype=dtype)


def _layer_class(kind: str, path: str) -> Callable[..., RecipeLayer]:
    home, _, class_name = kind.partition(".")
    recipe = None if home == _ENGINE else find_recipe(home)
    try:
        if recipe is not None:
            return recipe.layer(class_name)
        found: Callable[..., RecipeLayer] = getattr(importlib.import_module(_ENGINE_LAYERS[class_name]), class_name)
    except KeyError:
        raise InputError(
            f"{'The engine' if recipe is None else f'The recipe {home!r}'} has no layer {class_name!r}.",
            where=path,
            not_done="The network was not built.",
            to_do="Install the version of the package that wrote the file.",
        ) from None
    return found


def home_of(module: nn.Module, network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the floating tensors of ``module``, or of the network where it has none."""
    for source in (module, network):
        for tensor in (*source.parameters(), *source.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32
