"""Where two networks differ, as places that can be timed: the smallest modules of one path that take and give the same shapes in both.

A module is compared by its class and code, its own tensors' shapes, and which of its parts it calls. Where parts alone make the
difference and each of them takes and gives in one network what it does in the other, they are the places; else the module around them is.
So a convolution that gave way to another layer in its place is timed as one, and a block of which several layers were rewritten as a
block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.forwards.rewriting import original_class
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.nested import tensors_in

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Place:
    """A module that differs.

    Args:
        path: in both networks.
        kind: class names: the second network's, and the first's where that is another.
        inputs: shapes of the tensors that it is called on.
    """

    path: str
    kind: str
    inputs: Shapes


@dataclass(frozen=True)
class _Called:
    """What a module was called on and gave; ``inputs`` is ``None`` where it took anything but tensors, or ran more than once."""

    inputs: Shapes | None
    outputs: Shapes


def find_places(network: nn.Module, other: nn.Module, shape: Sequence[int]) -> list[Place]:
    """The places where ``network`` differs from ``other``, in the order of execution; nothing is computed.

    Args:
        network: a network.
        other: another, with paths in common.
        shape: of the input of both, ``[B, C, H, W]``.

    Raises:
        InputError: where one of them cannot run on shapes alone.
    """
    modules = [dict(unwrapped(one).named_modules()) for one in (network, other)]
    calls = [_calls(one, shape) for one in (network, other)]
    same: dict[str, bool] = {}

    def parts(side: int, path: str) -> list[str]:
        children = (f"{path}.{name}".removeprefix(".") for name, _ in modules[side][path].named_children())
        return [child for child in children if child in calls[side]]

    def same_shell(path: str) -> bool:
        ours, theirs = (modules[side][path] for side in (0, 1))
        return _shell(ours) == _shell(theirs) and parts(0, path) == parts(1, path)

    def is_same(path: str) -> bool:
        if path not in same:
            same[path] = same_shell(path) and all(is_same(child) for child in parts(0, path))
        return same[path]

    def comparable(path: str) -> bool:
        found = [calls[side].get(path) for side in (0, 1)]
        return found[0] is not None and found[0].inputs is not None and found[0] == found[1]

    def places(path: str) -> list[str]:
        if is_same(path):
            return []
        differing = [child for child in parts(0, path) if not is_same(child)] if same_shell(path) else []
        if differing and all(comparable(child) for child in differing):
            return [place for child in differing for place in places(child)]
        return [path]

    order = list(calls[0])
    found = sorted((path for path in places("") if path), key=order.index)
    return [Place(path, _kind(modules[1][path], modules[0][path]), calls[0][path].inputs or ()) for path in found]


def _kind(before: nn.Module, after: nn.Module) -> str:
    return " -> ".join(dict.fromkeys(original_class(module).__name__ for module in (before, after)))


def _shell(module: nn.Module) -> tuple[Any, ...]:
    """A module without its children: class, code and the shapes of its own tensors."""
    forward = getattr(type(module), "rewritten_forward", None)
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    told = "" if next(module.children(), None) is not None else module.extra_repr()
    return original_class(module), getattr(forward, "source", None), {name: tuple(tensor.shape) for name, tensor in own}, told


def _calls(network: nn.Module, shape: Sequence[int]) -> dict[str, _Called]:
    """What every module was called on and gave, in the order in which they began."""
    empty = meta_copy(unwrapped(network))
    dtype = next((p.dtype for p in empty.parameters() if p.is_floating_point()), torch.get_default_dtype())
    found: dict[str, _Called] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            plain = not kwargs and all(isinstance(arg, Tensor) for arg in args) and not found[path].outputs
            found[path] = _Called(_shapes(args) if plain else None, _shapes(output))

        return hook

    def begin(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            found.setdefault(path, _Called(None, ()))

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
            not_done="Its layers were not compared.",
            to_do="Leave --per-layer out.",
        ) from error
    return found


def _shapes(value: Any) -> Shapes:
    return tuple(tuple(tensor.shape) for tensor in tensors_in(value))
