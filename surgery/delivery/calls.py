"""Which modules run, in which order, and on what: seen by hooks while the network runs on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.nested import tensors_in

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Called:
    """What a module is called on and gives.

    Args:
        inputs: shapes of its tensors; ``None`` where it takes anything but tensors, or runs more than once.
        outputs: shapes of the tensors that it gives.
    """

    inputs: Shapes | None
    outputs: Shapes


def calls_on_shapes(network: nn.Module, shape: Sequence[int]) -> dict[str, Called]:
    """What every module that runs is called on and gives, by path, in the order in which they begin; nothing is computed.

    Args:
        network: in any mode; it runs in eval mode.
        shape: of its input, ``[B, C, H, W]``.

    Raises:
        InputError: where it does not run on shapes alone.
    """
    empty = meta_copy(unwrapped(network))
    dtype = next((p.dtype for p in empty.parameters() if p.is_floating_point()), torch.get_default_dtype())
    found: dict[str, Called] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = not kwargs and all(isinstance(arg, Tensor) for arg in args) and not found[path].outputs
            found[path] = Called(_shapes(args) if plain else None, _shapes(output))

        return hook

    def begin(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found.setdefault(path, Called(None, ()))

        return hook

    for path, module in empty.named_modules():
        module.register_forward_pre_hook(begin(path))
        module.register_forward_hook(watch(path), with_kwargs=True)
    try:
        with torch.no_grad():
            empty(torch.empty(tuple(shape), dtype=dtype, device="meta"))
    except Exception as error:
        raise InputError(
            f"The network does not run on shapes alone: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=type(network).__name__,
            not_done="Its layers were not looked at.",
            to_do="Compare the networks as wholes.",
        ) from error
    return found


def _shapes(value: Any) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))
