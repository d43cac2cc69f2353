"""Channel spaces: which layers must shrink together.

Every tensor's channel axis belongs to a space. Activations, norms, pooling, depthwise convolutions, additions and products keep their
input's space (and join the spaces of several inputs into one); an ordinary convolution or linear layer ends one space and begins
another. To drop a channel is to drop it from every member of its space. A space that also touches something whose channels cannot be
dropped (the network's input or output, a concatenation, a reshape by constants, an operation not known here) is blocked, with the reason.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from torch import fx, nn

from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.kinds import (
    conv_of,
    function_name,
    is_depthwise,
    is_elementwise,
    is_norm,
    is_pooling,
    linear_of,
    module_of,
    path_of,
    permutation,
    shape_of,
)


@dataclass(frozen=True)
class Member:
    """A layer's side that lies in a space: its ``in`` or ``out`` channels, or ``both`` for norms and depthwise convolutions.

    In a branch by itself (:mod:`chansurg.surgery.survey.branch`) it may also be a ``parameter`` that no layer holds.
    """

    path: str
    side: str
    node: fx.Node = field(compare=False)


@dataclass
class Space:
    """The channels that shrink together.

    Args:
        members: layers to narrow.
        blockers: why the space as a whole cannot shrink; empty where it can.
    """

    members: list[Member] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)


class ChannelSpaces:
    """The channel spaces of one region's graph.

    Args:
        nodes: the graph's nodes, in order.
        dividing: depthwise convolutions that are going to put out channels of their own: each ends a space and begins another, as an
            ordinary convolution does.
    """

    def __init__(self, nodes: Iterable[fx.Node], dividing: Collection[fx.Node] = ()) -> None:
        self._dividing = frozenset(dividing)
        self._parent: dict[fx.Node, fx.Node] = {}
        self._axis: dict[fx.Node, int] = {}
        self._members: list[tuple[fx.Node, Member]] = []
        self._blockers: list[tuple[fx.Node, str]] = []
        for node in nodes:
            self._parent[node] = node
            self._visit(node)
        self._spaces: dict[fx.Node, Space] | None = None

    def after(self, node: fx.Node) -> Space:
        """The space of what ``node`` computes."""
        return self._by_root().get(self._find(node), Space())

    def every(self) -> list[Space]:
        """All spaces that a layer lies in."""
        return [space for space in self._by_root().values() if space.members]

    def _by_root(self) -> dict[fx.Node, Space]:
        if self._spaces is None:
            self._spaces = {}
            for at, member in self._members:
                space = self._spaces.setdefault(self._find(at), Space())
                if member not in space.members:
                    space.members.append(member)
            for at, reason in self._blockers:
                self._spaces.setdefault(self._find(at), Space()).blockers.append(reason)
        return self._spaces

    def _find(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        self._parent[self._find(a)] = self._find(b)

    def _visit(self, node: fx.Node) -> None:
        sources = [source for source in node.all_input_nodes if source in self._parent]
        conv, linear = conv_of(node), linear_of(node)
        if node.op == "placeholder":
            self._axis[node] = 1
            self._blockers.append((node, "it is the network's input"))
        elif node.op == "output":
            self._block(sources, "it is the network's output")
        elif conv is not None and sources:
            self._axis[node] = 1
            if is_depthwise(conv) and conv.out_channels == conv.in_channels and node not in self._dividing:
                self._keep(node, sources[:1], 1)
                self._members.append((node, Member(path_of(node), "both", node)))
            else:
                self._require_axis(node, sources[0], 1)
                self._members.append((sources[0], Member(path_of(node), "in", node)))
                self._members.append((node, Member(path_of(node), "out", node)))
        elif linear is not None and sources:
            shape = shape_of(node)
            self._axis[node] = 1 if shape is not None and len(shape) == 2 else -1
            self._require_axis(node, sources[0], -1)
            self._members.append((sources[0], Member(path_of(node), "in", node)))
            self._members.append((node, Member(path_of(node), "out", node)))
        elif is_norm(node) and sources:
            self._norm(node, sources)
        elif is_pooling(node) and sources:
            self._keep(node, sources[:1], 1)
        elif is_elementwise(node) and sources:
            self._elementwise(node, sources)
        elif function_name(node) == "mean" and sources and self._spatial_mean(node, sources[0]):
            self._keep(node, sources[:1], 1)
        elif (moved := self._moved_axis(node, sources)) is not None:
            self._axis[node] = moved
            self._join(node, sources[0])
        else:
            self._unknown(node, sources)

    def _unknown(self, node: fx.Node, sources: list[fx.Node]) -> None:
        if function_name(node) == "getitem" and sources and isinstance(module_of(sources[0]), RecipeLayer):
            self._part(node, sources[0])
            return
        module = module_of(node)
        what = type(module).__name__ if module is not None else function_name(node) or node.op
        if node.op == "get_attr" or what in ("getattr", "size", "dim"):
            return
        reason = f"its channels go through {what} at {path_of(node)}"
        self._block([*sources, node], reason)
        if isinstance(module, RecipeLayer):
            self._axis[node] = self._axis.get(sources[0], 1) if sources else 1

    def _part(self, node: fx.Node, layer: fx.Node) -> None:
        """One of the tensors that a recipe's layer gives: nothing is known of its channels but where they come from."""
        self._block([node], f"its channels go through {type(module_of(layer)).__name__} at {path_of(layer)}")
        shape, given = shape_of(node), shape_of(layer.all_input_nodes[0])
        if shape is not None and given is not None and len(shape) == len(given):
            self._axis[node] = self._axis[layer]

    def _block(self, nodes: Iterable[fx.Node], reason: str) -> None:
        self._blockers.extend((node, reason) for node in nodes)

    def _keep(self, node: fx.Node, sources: list[fx.Node], axis: int | None) -> None:
        for source in sources:
            self._join(node, source)
        found = self._axis.get(sources[0], axis)
        if found is not None:
            self._axis[node] = found

    def _require_axis(self, node: fx.Node, source: fx.Node, axis: int) -> None:
        found, shape = self._axis.get(source), shape_of(source)
        same = found is None or found == axis or (shape is not None and found % len(shape) == axis % len(shape))
        if not same:
            self._block([source], f"{path_of(node)} works across another axis than the channels")

    def _norm(self, node: fx.Node, sources: list[fx.Node]) -> None:
        module = module_of(node)
        self._keep(node, sources[:1], None)
        if isinstance(module, (nn.GroupNorm, nn.modules.normalization.LocalResponseNorm)):
            self._block([node], f"{path_of(node)} normalises over groups of channels")
        elif module is not None:
            self._members.append((node, Member(path_of(node), "both", node)))
        else:
            self._block([node], f"its channels go through {function_name(node)} at {path_of(node)}")

    def _elementwise(self, node: fx.Node, sources: list[fx.Node]) -> None:
        axes = {self._axis[source] for source in sources if source in self._axis}
        shape, module = shape_of(node), module_of(node)
        has_numbers = module is not None and any(parameter.numel() > 1 for parameter in module.parameters())  # as a PReLU may
        if len(axes) > 1 or shape is None or has_numbers:
            self._unknown(node, sources)
            return
        axis = next(iter(axes), None)
        if axis is not None:
            self._axis[node] = axis
        for source in sources:
            other = shape_of(source)
            if source.op == "get_attr":
                if other and max(other, default=1) > 1:
                    self._block([node], f"it is combined with the parameter {source.target}")
            elif other is not None and axis is not None and len(other) == len(shape) and other[axis] == shape[axis]:
                self._join(node, source)
            elif other is not None and len(other) == len(shape) and axis is not None and other[axis] == 1:
                continue
            elif other != ():
                self._block([node, source], f"it is combined with a tensor of another shape at {path_of(node)}")

    def _spatial_mean(self, node: fx.Node, source: fx.Node) -> bool:
        shape = shape_of(source)
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        if shape is None or dims is None or self._axis.get(source) is None:
            return False
        wanted = dims if isinstance(dims, (tuple, list)) else (dims,)
        channel = self._axis[source] % len(shape)
        return all(isinstance(d, int) and d % len(shape) not in (0, channel) for d in wanted)

    def _moved_axis(self, node: fx.Node, sources: list[fx.Node]) -> int | None:
        """The channel axis after a permutation or flattening that leaves whole channels together; ``None`` if it is none."""
        if not sources or sources[0] not in self._axis:
            return None
        before, after = shape_of(sources[0]), shape_of(node)
        if before is None or after is None:
            return None
        channel = self._axis[sources[0]] % len(before)
        module, name = module_of(node), function_name(node)
        order = permutation(node)
        if order is not None:
            moved = order.index(channel)
            return -1 if moved == len(before) - 1 and moved != 1 else moved
        if name == "flatten" or isinstance(module, nn.Flatten):
            if channel == 1 and len(after) == 3 and len(before) > 3 and after[1] == before[1]:
                return 1
            if channel == 1 and len(after) == 2 and after[1] == before[1]:
                return 1
        return None
