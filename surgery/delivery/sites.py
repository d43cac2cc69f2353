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

from torch import nn

from chansurg.surgery.delivery.calls import Shapes, calls_on_shapes
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.forwards.rewriting import original_class


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
    calls = [calls_on_shapes(one, shape) for one in (network, other)]
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
