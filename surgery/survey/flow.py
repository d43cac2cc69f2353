"""Where a node's channels go: through what, and to which readers, channel by channel.

A tensor of numbers that stand for the channels is sent along the graph. What only moves elements about is carried out on it, so that
flattening, shuffling, splitting and concatenation need no rules of their own; what works on each channel by itself passes it on; and where
something reads the channels, the flow ends, with the channel that each of the reader's inputs comes from.

The number of a channel is its index and one; 0 stands for what is no channel of the flow, and -1 for zeros that padding adds, which are
as good as any channel's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from chansurg.surgery.gating import Gate
from chansurg.surgery.survey.kinds import (
    conv_of,
    function_name,
    is_activation,
    is_addition,
    is_neutral,
    is_norm,
    is_pooling,
    linear_of,
    module_of,
    path_of,
    shape_of,
)
from chansurg.surgery.survey.regions import Region

_MOVING = frozenset(
    (
        "view reshape flatten unflatten permute transpose movedim chunk split tensor_split getitem cat concat concatenate stack unbind "
        "squeeze unsqueeze narrow select flip roll channel_shuffle swapaxes"
    ).split()
)
_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)
_ZEROS = -1.0
_REDUCING = frozenset(("mean", "sum", "amax", "amin"))
_MULTIPLYING = frozenset(("mul", "imul", "multiply"))
_DIVIDING = frozenset(("truediv", "itruediv", "div", "divide"))
_HOMOGENEOUS = frozenset(("relu", "leakyrelu", "prelu", "rrelu"))
_KEEPING_ZERO = frozenset("relu6 silu swish gelu gelutanh quickgelu hardswish mish hardmish elu celu selu tanh softsign".split())


@dataclass(frozen=True)
class Reader:
    """Where channels end up.

    Args:
        node: what reads them.
        kind: ``layer`` (a convolution or linear layer), ``source`` (a gate computes its salience from them), ``addition``, ``norm``,
            ``output`` or ``other``.
        why: for everything but a layer or a gate, how it reads in a sentence: "it is added to another tensor".
        origins: for a layer or gate, the channel of the flow that each input channel comes from; ``None`` for the others'.
    """

    node: fx.Node
    kind: str
    why: str
    origins: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Flow:
    """What a node's channels go through, in order, and who reads them in the end."""

    passed: tuple[fx.Node, ...]
    readers: tuple[Reader, ...]


def flow(region: Region, start: fx.Node, axis: int, *, homogeneous: bool) -> Flow:
    """Follow the channels of what ``start`` puts out.

    Args:
        region: where it is.
        start: a node whose shape is known.
        axis: of its channels.
        homogeneous: pass only what a positive factor on a channel goes through unchanged. Else, what keeps a channel of zeros at zero.
    """
    return _Following(region, start, axis, homogeneous).run()


def homogeneous_activation(node: fx.Node) -> bool:
    """Whether ``f(a x) = a f(x)`` for every positive ``a``."""
    return _activation_name(node) in _HOMOGENEOUS


class _Following:
    def __init__(self, region: Region, start: fx.Node, axis: int, homogeneous: bool) -> None:
        self._nodes = region.nodes
        self._start = start
        self._homogeneous = homogeneous
        shape = shape_of(start)
        assert shape is not None
        numbers = torch.arange(1.0, shape[axis] + 1).reshape([-1 if d == axis % len(shape) else 1 for d in range(len(shape))])
        self._flowing: dict[fx.Node, Any] = {start: numbers.expand(shape)}
        self._still: dict[fx.Node, Any] = {}
        self._passed: list[fx.Node] = []
        self._readers: list[Reader] = []

    def run(self) -> Flow:
        for node in self._nodes[self._nodes.index(self._start) + 1 :]:
            if any(source in self._flowing for source in node.all_input_nodes):
                self._visit(node)
        return Flow(tuple(self._passed), tuple(self._readers))

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._flowing]
        if node.op == "output":
            self._end(node, "output", "it leaves the network")
        elif conv_of(node) is not None or linear_of(node) is not None:
            self._read(node, "layer", sources[0], 1 if conv_of(node) is not None else -1)
        elif isinstance(module_of(node), Gate):
            self._gate(node)
        elif is_norm(node):
            self._end(node, "norm", f"the norm {path_of(node)} makes something else of it")
        elif function_name(node) in ("add", "iadd"):
            both = is_addition(node) and all(source.op != "get_attr" for source in node.all_input_nodes)
            self._end(
                node, "addition" if both else "other", f"it is added to {'another tensor' if both else 'a constant'} at {path_of(node)}"
            )
        elif not self._passes(node, sources):
            what = type(module_of(node)).__name__ if module_of(node) is not None else function_name(node)
            self._end(node, "other", f"{what} at {path_of(node)} makes something else of it")

    def _end(self, node: fx.Node, kind: str, why: str) -> None:
        self._readers.append(Reader(node, kind, why))

    def _gate(self, node: fx.Node) -> None:
        features, source = node.all_input_nodes[0], node.all_input_nodes[-1]
        if source in self._flowing:
            module = module_of(node)
            assert isinstance(module, Gate)
            self._read(node, "source", source, module.channel_dim)
        if features in self._flowing:
            self._pass(node, self._flowing[features])

    def _read(self, node: fx.Node, kind: str, source: fx.Node, axis: int) -> None:
        numbers = self._flowing[source]
        origins = _along(numbers, axis) if isinstance(numbers, Tensor) else None
        if origins is None:
            self._end(node, "other", f"{path_of(node)} works across another axis than the channels")
        else:
            self._readers.append(Reader(node, kind, "", tuple(int(number) - 1 if number > 0 else None for number in origins.tolist())))

    def _pass(self, node: fx.Node, numbers: Any) -> None:
        self._passed.append(node)
        self._flowing[node] = numbers

    def _passes(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        """Pass the numbers on, where ``node`` is known to do no more than that to its channels."""
        module, name = module_of(node), function_name(node)
        numbers = self._flowing[sources[0]]
        if name in ("size", "dim", "getattr", "shape"):
            return True  # its shape is no secret
        if isinstance(module, _MOVING_MODULES) or type(module).__name__ == "Permute" or (module is None and name in _MOVING):
            return self._move(node)
        if not isinstance(numbers, Tensor):
            return False
        if is_neutral(node) or self._activates(node):
            self._pass(node, numbers)
            return True
        if name == "pad" or isinstance(module, nn.modules.padding._ConstantPadNd):
            return self._pad(node, numbers)
        if is_pooling(node):
            return self._pool(node, numbers)
        if name in _REDUCING:
            return self._reduce(node, numbers)
        if name in _MULTIPLYING or name in _DIVIDING:
            return self._multiply(node, sources, divides=name in _DIVIDING)
        return False

    def _activates(self, node: fx.Node) -> bool:
        name = _activation_name(node)
        return name in _HOMOGENEOUS or (not self._homogeneous and name in _KEEPING_ZERO)

    def _move(self, node: fx.Node) -> bool:
        try:
            moved = self._evaluate(node)
        except Exception:  # whatever a foreign call may raise on numbers that are not what it expects
            return False
        self._pass(node, moved)
        return True

    def _pad(self, node: fx.Node, numbers: Tensor) -> bool:
        module: Any = module_of(node)
        given: dict[str, Any] = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
        if module is not None:
            given = {"pad": module.padding, "value": getattr(module, "value", 0)}
        if given.get("mode", "constant") != "constant" or given.get("value") not in (0, None):
            return False
        if not all(isinstance(side, int) for side in given["pad"]):
            return False
        self._pass(node, functional.pad(numbers, list(given["pad"]), value=_ZEROS))
        return True

    def _pool(self, node: fx.Node, numbers: Tensor) -> bool:
        origins, shape = _along(numbers, 1), shape_of(node)
        if origins is None or shape is None or len(shape) != numbers.ndim:
            return False
        self._pass(node, origins.reshape(1, -1, *(1,) * (len(shape) - 2)).expand(shape))
        return True

    def _reduce(self, node: fx.Node, numbers: Tensor) -> bool:
        shape = shape_of(node)
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        wanted = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        if shape is None or not wanted or not all(isinstance(dim, int) for dim in wanted):
            return False
        least, most = (reduce(numbers, wanted, keepdim=len(shape) == numbers.ndim) for reduce in (torch.amin, torch.amax))
        if not torch.equal(least, most):
            return False
        self._pass(node, most)
        return True

    def _multiply(self, node: fx.Node, sources: Sequence[fx.Node], *, divides: bool) -> bool:
        """A product with something that does not flow; of two that do, one channel may be zero but no factor goes through."""
        shape, numbers = shape_of(node), self._flowing[sources[0]]
        if shape is None or tuple(numbers.shape) != shape or (divides and node.args[0] is not sources[0]):
            return False
        if len(sources) > 1 or node.args[0] is node.args[-1]:
            same = all(isinstance(self._flowing[s], Tensor) and torch.equal(self._flowing[s].expand(shape), numbers) for s in sources)
            if self._homogeneous or divides or not same:
                return False
        self._pass(node, numbers)
        return True

    def _evaluate(self, node: fx.Node) -> Any:
        """Carry a moving call out on numbers."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), self._value)
        module = module_of(node)
        if module is not None:
            return type(module).forward(module, *args, **kwargs)
        if node.op == "call_method":
            name = "reshape" if node.target == "view" else str(node.target)  # the numbers do not lie in memory as the tensor does
            return getattr(args[0], name)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: fx.Node) -> Any:
        """The numbers of what flows; zeros, for what is not the flow's; anything else (sizes) as it is."""
        if node in self._flowing:
            return self._flowing[node]
        if node not in self._still:
            shape, shapes = shape_of(node), node.meta.get("shapes")
            if shape is not None:
                self._still[node] = torch.zeros(()).expand(shape)
            elif shapes is not None:
                self._still[node] = tuple(torch.zeros(()).expand(shape) for shape in shapes)
            else:
                self._still[node] = self._evaluate(node)
        return self._still[node]


def _along(numbers: Tensor, axis: int) -> Tensor | None:
    """The numbers along one axis, ``[C]``, where they do not vary along the others."""
    by_axis = numbers.movedim(axis, 0).flatten(1)
    found = by_axis.amax(1)
    return found if bool(((by_axis == found[:, None]) | (by_axis == _ZEROS)).all()) else None


def _activation_name(node: fx.Node) -> str:
    if not is_activation(node):
        return ""
    module = module_of(node)
    name = (type(module).__name__ if module is not None else function_name(node)).lower().replace("_", "").removesuffix("me")
    if name == "hardtanh":
        low, high = (getattr(module, side, None) for side in ("min_val", "max_val"))
        return "relu6" if module is not None and low is not None and high is not None and low <= 0 <= high else name
    return name
