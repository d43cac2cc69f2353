"""Which tensors have the batch as their first dimension, told by running the traced parts on two images as well as on one.

A recipe's layer may summarise everything but the first dimension; where that holds positions (sequence-first) or positions and images
together (windows folded into the batch), it would mix images or tell parts of one apart.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn

from chansurg.surgery.forwards.arguments import copied
from chansurg.surgery.forwards.tracing import unchanged
from chansurg.surgery.survey.regions import Region, ShapeRecorder, batch_norms_skipped, example_inputs


def mark_batched(network: nn.Module, regions: Sequence[Region], example: torch.Tensor) -> None:
    """Write ``meta["batched"]`` on every node that the second run reaches: whether its first dimension is the batch, and no other is.

    Args:
        network: on the meta device, in eval mode.
        regions: its traced parts, with the shapes of one image.
        example: a meta tensor ``[1, C, H, W]``, the network's input.
    """
    inputs = example_inputs(network, example.new_empty(2, *example.shape[1:]))
    for region, (args, kwargs) in _arguments(network, regions, inputs):
        # A region may fail on two images although it runs on one; what it does not reach stays unmarked.
        with suppress(Exception), torch.no_grad(), batch_norms_skipped(region.root):
            bound = inspect.signature(type(region.root).forward).bind(region.root, *args, **kwargs)
            bound.apply_defaults()
            _BatchRecorder(region).run(*(copied(value) for value in list(bound.arguments.values())[1:]))


class _BatchRecorder(ShapeRecorder):
    """Compares the shapes of two images with those of one."""

    def run_node(self, n: fx.Node) -> Any:
        result = fx.Interpreter.run_node(self, n)
        alone = n.meta.get("shape")
        if isinstance(result, torch.Tensor) and alone is not None:
            n.meta["batched"] = alone[:1] == (1,) and tuple(result.shape) == (2, *alone[1:])
        return result


def _arguments(
    network: nn.Module, regions: Sequence[Region], inputs: tuple[torch.Tensor, ...]
) -> list[tuple[Region, tuple[tuple[Any, ...], dict[str, Any]]]]:
    """What each region's module is given when the network runs on ``inputs``; regions that are not reached are left out."""
    if [region.path for region in regions] == [""]:
        return [(regions[0], (inputs, {}))]
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, (copied(args), copied(kwargs)))

        return hook

    handles = [region.root.register_forward_pre_hook(watch(region.path), with_kwargs=True) for region in regions]
    try:
        with suppress(Exception), torch.no_grad(), unchanged(network):
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [(region, seen[region.path]) for region in regions if region.path in seen]
