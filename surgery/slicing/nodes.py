"""What can be told of a node by itself: what it is called, whether it moves elements, works in place, or only asks for a size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from chansurg.surgery.slicing.extents import extents
from chansurg.surgery.slicing.slots import Slots
from chansurg.surgery.survey.kinds import function_name, is_neutral, module_of, path_of, shape_of

_IN_PLACE = frozenset("setitem iadd isub imul itruediv ifloordiv imod ipow iand ior ixor".split())
# fmt: off
_FREELY = frozenset((
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "squeeze", "unsqueeze", "flatten", "ravel",
    "pixel_unshuffle", "repeat_interleave",
))
# fmt: on
_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelUnshuffle)
_RESHAPES = frozenset(("view", "reshape", "unflatten"))
PARTS = frozenset(("chunk", "tensor_split", "split", "split_with_sizes", "unbind"))


def is_movement(node: fx.Node) -> bool:
    """Whether the node moves elements and computes nothing (:mod:`chansurg.surgery.slicing.movement`)."""
    module = module_of(node)
    if module is not None:
        return isinstance(module, _MODULES) or type(module).__name__ == "Permute"
    name = function_name(node)
    return name in _FREELY or name in _RESHAPES or name in PARTS or name in ("getitem", "expand", "expand_as", "roll", "flip")


class NoRule(Exception):
    """An operation that is not understood; the message is the reason why what it touches stays."""


def attribute(name: str, source: Any, rest: tuple[Any, ...], kwargs: dict[str, Any], node: fx.Node) -> Any:
    """A size of a tensor, or what else can be asked of it without its numbers."""
    if not isinstance(source, Slots):
        raise NoRule(f"{name} is asked of what is no tensor")
    wanted = rest[0] if name == "getattr" else name
    if wanted in ("shape", "size"):
        sizes = extents(source)
        dim = kwargs.get("dim", rest[0] if rest and name == "size" else None)
        return sizes if dim is None else sizes[dim]
    origin = node.all_input_nodes[0]
    empty = torch.empty(source.shape, device="meta", dtype=origin.meta.get("dtype", torch.float32))
    value = getattr(empty, wanted)
    value = value() if callable(value) else value
    if isinstance(value, Tensor):
        raise NoRule(f"its channels go through {wanted} at {path_of(node)}")
    return value


def shapes(node: fx.Node) -> list[tuple[int, ...] | None]:
    """The shapes that the survey noted for what a node puts out."""
    if "shape" in node.meta:
        return [shape_of(node)]
    return list(node.meta.get("shapes", ()))


def what(node: fx.Node) -> str:
    """What a node calls and where, for a reason."""
    module = module_of(node)
    name = type(module).__name__ if module is not None else function_name(node) or node.op
    return f"{name} at {path_of(node)}"


def works_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first input in memory, or may."""
    called = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
    by_name = (called.endswith("_") and not called.endswith("__")) or function_name(node) in _IN_PLACE
    return by_name or bool(getattr(module_of(node), "inplace", False)) or "inplace" in node.kwargs


def shares_storage(node: fx.Node) -> bool:
    """Whether what a node puts out may lie in the memory of its input."""
    return works_in_place(node) or is_movement(node) or is_neutral(node)
