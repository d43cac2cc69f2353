"""The walk through a network that says what every element of every tensor belongs to, and when it is exactly zero.

One rule for each sort of operation. An operation without a rule stops what it touches from being removed, with the reason, and so does a
rule that fails or gives a tensor of another shape than the network has there: what is not understood stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from chansurg.surgery.editing.narrowing import reason_against
from chansurg.surgery.gating import Gate
from chansurg.surgery.slicing.elementwise import combined, is_combination, scaled
from chansurg.surgery.slicing.extents import counted
from chansurg.surgery.slicing.facts import Addition, Facts, Grouped, Layer, Reader
from chansurg.surgery.slicing.formulas import FALSE, TRUE, Ints
from chansurg.surgery.slicing.movement import joined, moved
from chansurg.surgery.slicing.nodes import NoRule, attribute, is_movement, shapes, shares_storage, what, works_in_place
from chansurg.surgery.slicing.scatter import ScatterAdd
from chansurg.surgery.slicing.slots import Channels, Slots, SlotTable, described, spread, together
from chansurg.surgery.slicing.zeros import is_unary, keeps_zero
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.kinds import (
    conv_of,
    function_name,
    is_addition,
    is_depthwise,
    is_neutral,
    is_pooling,
    linear_of,
    module_of,
    path_of,
    shape_of,
)

_REDUCTIONS = frozenset(("mean", "sum", "amax", "amin"))


class Unknown:
    """What came out of an operation of which not even the shape is known."""


def label(survey: Survey) -> tuple[SlotTable, Facts]:
    """Describe every tensor of a surveyed network.

    Returns:
        The slots with what unites and blocks them, and what was found on the way.
    """
    table, facts = SlotTable(), Facts()
    original = dict(survey.original.named_modules())
    for region in survey.regions:
        Labelling(survey, region, table, facts, original).run()
    return table, facts


class Labelling(fx.Interpreter):
    """Walks through one region's graph."""

    def __init__(self, survey: Survey, region: Region, table: SlotTable, facts: Facts, original: dict[str, nn.Module]) -> None:
        super().__init__(region.root, garbage_collect_values=False, graph=region.graph)
        self.survey, self.region, self.table, self.facts, self.original = survey, region, table, facts, original
        self.order = {node: number for number, node in enumerate(region.nodes)}
        self.storage: dict[fx.Node, fx.Node] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Walk through the whole graph."""
        return super().run(*(None for node in self.region.nodes if node.op == "placeholder"))

    def run_node(self, n: fx.Node) -> Any:
        """Describe what one node computes."""
        if n.op == "placeholder":
            return self._given(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        slots = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Slots)]
        if n.op == "output":
            for leaf in slots:
                self.table.block(leaf.labels, "it is what the network puts out" if not self.region.path else "untraced code takes it")
            return None
        first = n.all_input_nodes[0] if n.all_input_nodes else n
        self.storage[n] = self.storage.get(first, first) if shares_storage(n) else n
        unknown = any(isinstance(leaf, Unknown) for leaf in tree_leaves((args, kwargs)))
        try:
            if unknown:
                raise NoRule(f"its channels go through {path_of(n)}, whose input is not understood")
            if not slots:
                return self._computed(n, args, kwargs)
            result = self._described(n, args, kwargs)
            for shape, found in zip(shapes(n), [leaf for leaf in tree_leaves(result) if isinstance(leaf, Slots)], strict=False):
                if shape is not None and shape != found.shape:
                    raise NoRule(f"its channels go through {path_of(n)}, whose shapes are not understood")
        except Exception as error:  # foreign operations may fail in any way on what stands for their tensors
            reason = str(error) if isinstance(error, NoRule) else f"its channels go through {path_of(n)}"
            for leaf in slots:
                self.table.block(leaf.labels, reason)
            result = self._fixed(n, reason)
        if works_in_place(n) and not (is_unary(n) and keeps_zero(n)):
            self._forget_aliases(n)
        return result

    def _computed(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What does not depend on the network's input, or only on its sizes."""
        result = getattr(self, n.op)(n.target, args, kwargs)
        if isinstance(result, (float, Tensor)):
            counted(self.table, tree_leaves((args, kwargs)), path_of(n))
        return result

    def _given(self, node: fx.Node) -> Any:
        """An input: of the network, or of the part that was traced."""
        shape = shape_of(node)
        if shape is None:
            return Unknown() if node.users else None
        reason = "it is the network's input" if not self.region.path else "untraced code puts it out"
        return self._stuck(shape, reason)

    def _stuck(self, shape: tuple[int, ...], reason: str) -> Slots:
        slot = self.table.fresh(1)
        self.table.block(slot, reason)
        return Slots(torch.from_numpy(slot).view((1,) * len(shape)).expand(shape), torch.zeros((), dtype=torch.int64).expand(shape), 0)

    def _fixed(self, node: fx.Node, reason: str) -> Any:
        known = shapes(node)
        if not known or any(shape is None for shape in known):
            return Unknown()
        # What is not understood counts as one layer, lest a branch that goes through it be taken for the shortcut.
        ahead = [value.depth for source in node.all_input_nodes if isinstance(value := self.env.get(source), Slots)]
        depth = max(ahead, default=0) + 1
        made = [dataclasses.replace(self._stuck(shape, reason), depth=depth) for shape in known if shape is not None]
        return made[0] if "shape" in node.meta else tuple(made)

    def _forget_aliases(self, node: fx.Node) -> None:
        """After a change in place, what later code reads under another name is not what was described."""
        changed = self.storage.get(node.all_input_nodes[0], node.all_input_nodes[0])
        for other, root in self.storage.items():
            value = self.env.get(other)
            stale = (root is changed or other is changed) and other is not node
            if stale and isinstance(value, Slots) and any(self.order[user] > self.order[node] for user in other.users):
                self.env[other] = Slots(
                    value.labels, torch.zeros_like(value.zero[(slice(0, 1),) * value.zero.ndim]).expand(value.shape), value.depth
                )

    def _described(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, module = function_name(n), module_of(n)
        source = args[0] if args else None
        if name in ("getattr", "size", "dim", "ndimension", "numel"):
            return attribute(name, source, args[1:], kwargs, n)
        if name == "getitem" and isinstance(source, (list, tuple)):
            return source[args[1]]
        if isinstance(module, Gate):
            return self._gate(n, module, *args, **kwargs)
        if isinstance(module, ScatterAdd):
            return self._scatter(n, module, *args)
        if name in ("cat", "concat", "concatenate", "stack"):
            parts = list(kwargs.get("tensors", source) or ())
            return joined(self.table, n, parts, kwargs.get("dim", args[1] if len(args) > 1 else 0), stacked=name == "stack")
        if is_combination(n):
            return self._combined(n, args, kwargs)
        if not isinstance(source, Slots):
            raise NoRule(f"its channels go through {what(n)}")
        rule = self._rule(n)
        return rule(n, source, args, kwargs)

    def _rule(self, n: fx.Node) -> Callable[[fx.Node, Slots, tuple[Any, ...], dict[str, Any]], Any]:
        module, name = module_of(n), function_name(n)
        if conv_of(n) is not None:
            return self._conv
        if linear_of(n) is not None:
            return self._linear
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or type(module).__name__ == "FrozenBatchNorm2d":
            return self._norm
        if is_unary(n):
            return self._unary
        if name == "pad" or isinstance(module, nn.modules.padding._ConstantPadNd):
            return self._pad
        if is_movement(n):
            return lambda n, source, args, kwargs: moved(self.table, n, args, kwargs)
        if is_pooling(n):
            return self._pool
        if name in _REDUCTIONS:
            return self._reduced
        if is_neutral(n):
            return lambda n, source, args, kwargs: source
        raise NoRule(f"its channels go through {what(n)}")

    def _channels(self, n: fx.Node, slots: Slots, dim: int) -> Channels:
        found = self.table.channels(slots, dim)
        if found is None:
            raise NoRule(f"{path_of(n)} works across another axis than the channels")
        return found

    def _layer(self, n: fx.Node, inputs: Ints | None, outputs: Ints) -> None:
        """Note a layer; where it cannot be narrowed, its channels stay."""
        path, shape = path_of(n), shape_of(n)
        module = self.original.get(path)
        reason = "it is not where the survey found it" if module is None else self.survey.uneditable(self.region, n, replaces=True)
        if module is not None and reason is None:
            reason = reason_against(module, None if inputs is None else range(len(inputs)), range(len(outputs)))
        if reason is not None:
            self.table.block(outputs if inputs is None else np.concatenate([inputs, outputs]), f"{path} keeps its channels: {reason}")
        positions = 1
        for length in shape or ():
            positions *= length
        self.facts.layers.append(Layer(path, inputs, outputs, positions // len(outputs)))

    def _conv(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        conv, shape = conv_of(n), shape_of(n)
        assert conv is not None
        if shape is None:
            raise NoRule(f"the shapes at {path_of(n)} are not known")
        given = self._channels(n, source, len(shape) - 1 - len(conv.kernel_size))
        depth = source.depth + 1
        silent = conv.bias is None and (conv.padding_mode == "zeros" or not any(np.atleast_1d(conv.padding).tolist()))
        if is_depthwise(conv) and conv.in_channels == conv.out_channels:
            self._layer(n, None, given.labels)
            return described(given.labels, given.zero if silent else None, given.dim, shape, depth)
        made = self.table.fresh(conv.out_channels)
        self._layer(n, given.labels, made)
        if conv.groups == 1:
            self.facts.readers.append(Reader(path_of(n), given.labels, given.zero))
            return described(made, None, given.dim, shape, depth)
        by_group = given.zero.reshape(conv.groups, -1)
        self.facts.grouped.append(
            Grouped(path_of(n), given.labels.reshape(conv.groups, -1), by_group, made.reshape(conv.groups, -1), not is_depthwise(conv))
        )
        none = np.array([self.table.formulas.all_of(row) if silent else FALSE for row in by_group], dtype=np.int64)
        return described(made, none.repeat(conv.out_channels // conv.groups), given.dim, shape, depth)

    def _linear(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        linear, shape = linear_of(n), shape_of(n)
        assert linear is not None
        if shape is None:
            raise NoRule(f"the shapes at {path_of(n)} are not known")
        given = self._channels(n, source, -1)
        made = self.table.fresh(linear.out_features)
        self._layer(n, given.labels, made)
        self.facts.readers.append(Reader(path_of(n), given.labels, given.zero))
        return described(made, None, -1, shape, source.depth + 1)

    def _norm(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        given = self._channels(n, source, 1)
        self._layer(n, None, given.labels)
        return described(given.labels, None, 1, source.shape, source.depth)

    def _unary(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        return source if keeps_zero(n) else scaled(source, keeps_zero=False)

    def _pool(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        shape = shape_of(n)
        if shape is None or len(shape) < 3 or shape[:2] != source.shape[:2]:
            raise NoRule(f"its channels go through {what(n)}")
        given = self._channels(n, source, 1)
        return described(given.labels, given.zero, 1, shape, source.depth)

    def _pad(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        module = module_of(n)
        if module is not None:
            assert isinstance(module, nn.modules.padding._ConstantPadNd)
            widths, mode, value = tuple(module.padding), "constant", module.value
        else:
            given = {**dict(zip(("pad", "mode", "value"), args[1:], strict=False)), **kwargs}
            widths, mode, value = given["pad"], given.get("mode", "constant"), given.get("value") or 0
        ends = [(int(widths[i]), int(widths[i + 1])) for i in range(0, len(widths), 2)]
        with_zeros = mode != "constant" or value == 0
        result = source if with_zeros else scaled(source, keeps_zero=False)
        for number, (before, after) in enumerate(ends):
            dim = len(source.shape) - 1 - number
            if (before, after) == (0, 0):
                continue
            if self.table.varies(result, dim):
                if mode != "constant" or min(before, after) < 0 or value != 0:
                    raise NoRule(f"its channels are padded at {path_of(n)}")
                result = self._filled_up(n, result, dim, before, after)
            else:
                shape = (*result.shape[:dim], result.shape[dim] + before + after, *result.shape[dim + 1 :])
                labels, zero = (tensor.narrow(dim, 0, 1).expand(shape) for tensor in (result.labels, result.zero))
                result = Slots(labels, zero, result.depth)
        return result

    def _filled_up(self, n: fx.Node, source: Slots, dim: int, before: int, after: int) -> Slots:
        """Channels of zeros are put around the others; their number is written in the code."""
        given = self._channels(n, source, dim)
        around = self.table.fresh(before + after)
        self.table.block(around, f"{path_of(n)} always fills up with {before + after} channels of zeros")
        zeros = np.full(before + after, TRUE, dtype=np.int64)
        labels = np.concatenate([around[:before], given.labels, around[before:]])
        zero = np.concatenate([zeros[:before], given.zero, zeros[before:]])
        shape = (*source.shape[:dim], len(labels), *source.shape[dim + 1 :])
        return described(labels, zero, dim, shape, source.depth)

    def _reduced(self, n: fx.Node, source: Slots, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if not isinstance(dims, (int, tuple, list)):
            raise NoRule(f"{path_of(n)} takes everything together")
        reduced = sorted({int(d) % len(source.shape) for d in (dims if isinstance(dims, (tuple, list)) else (dims,))})
        if any(self.table.varies(source, dim) for dim in reduced):
            raise NoRule(f"{path_of(n)} takes its channels together")
        result = source
        for dim in reversed(reduced):
            labels, zero = result.labels.narrow(dim, 0, 1), result.zero.narrow(dim, 0, 1)
            if result.zero.stride(dim) != 0:
                for place in range(1, result.shape[dim]):
                    a, b = together(zero, result.zero.narrow(dim, place, 1))
                    zero = torch.from_numpy(self.table.formulas.both(a.numpy(), b.numpy())).expand(zero.shape)
            result = Slots(labels, zero, result.depth)
        keepdim = bool(kwargs.get("keepdim", args[2] if len(args) > 2 else False))
        if keepdim:
            return result
        shape = [size for dim, size in enumerate(result.shape) if dim not in reduced]
        index = tuple(0 if dim in reduced else slice(None) for dim in range(len(result.shape)))
        return Slots(result.labels[index].expand(shape), result.zero[index].expand(shape), result.depth)

    def _gate(self, n: fx.Node, gate: Gate, features: Slots, source: Slots) -> Slots:
        given, read = self._channels(n, features, gate.channel_dim), self._channels(n, source, gate.channel_dim)
        units = given.labels.reshape(-1, gate.unit)
        self.table.unite(units[:, :1].repeat(gate.unit, 1), units)
        self._layer(n, read.labels, given.labels)
        self.facts.readers.append(Reader(path_of(n), read.labels, read.zero))
        bits = self.table.formulas.bits(path_of(n), len(units)).repeat(gate.unit)
        zero = self.table.formulas.either(given.zero, bits)
        return described(given.labels, zero, given.dim, features.shape, features.depth)

    def _scatter(self, n: fx.Node, layer: ScatterAdd, first: Slots, second: Slots) -> Slots:
        stage, branch = (first, second) if layer.branch == 1 else (second, first)
        whole, part = self._channels(n, stage, layer.channel_dim), self._channels(n, branch, layer.channel_dim)
        at = np.array(layer.kept, dtype=np.int64)
        zero = whole.zero.copy()
        zero[at] = self.table.formulas.both(zero[at], part.zero)
        if (reason := self.survey.uneditable(self.region, n, replaces=True)) is not None:
            self.table.block(np.concatenate([whole.labels, part.labels]), f"{path_of(n)} keeps its channels: {reason}")
        self.facts.additions.append(
            Addition(self.region, n, whole.dim, layer.branch, whole.labels[at], part.labels, part.zero, whole.labels, made=True)
        )
        return described(whole.labels, zero, whole.dim, stage.shape, max(first.depth, second.depth))

    def _combined(self, n: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slots:
        a, b = args[0], args[1] if len(args) > 1 else kwargs.get("other")
        counted(self.table, (a, b), path_of(n))
        if is_addition(n) and isinstance(a, Slots) and isinstance(b, Slots) and not kwargs:
            cut = self._cut(n, a, b)
            if cut is not None:
                return cut
        return combined(self.table, n, a, b)

    def _cut(self, n: fx.Node, a: Slots, b: Slots) -> Slots | None:
        """Note a residual addition that can be cut, and describe its sum; ``None`` for any other addition."""
        if a.depth == b.depth or (function_name(n) == "iadd" and self._is_read_later(n)):
            return None
        branch, stage, which = (a, b, 0) if a.depth > b.depth else (b, a, 1)
        dims = set(self.table.varying(branch)) | set(self.table.varying(stage))
        if len(dims) != 1:
            return None
        (dim,) = dims
        theirs, ours = self.table.channels(branch, dim), self.table.channels(stage, dim)
        if theirs is None or ours is None or (theirs.zero == FALSE).all():
            return None
        if any(len(np.unique(self.table.roots(channels.labels))) != len(channels.labels) for channels in (theirs, ours)):
            return None
        if self.survey.uneditable(self.region, n, replaces=False) is not None:
            return None
        self.facts.additions.append(Addition(self.region, n, dim, which, ours.labels, theirs.labels, theirs.zero, ours.labels))
        zero = self.table.formulas.both(ours.zero, theirs.zero)
        return Slots(stage.labels, spread(zero, dim, stage.shape), max(a.depth, b.depth))

    def _is_read_later(self, n: fx.Node) -> bool:
        """Whether what an operation changes in place is also read afterwards, under another name."""
        changed = self.storage.get(n.all_input_nodes[0], n.all_input_nodes[0])
        names = [node for node, root in self.storage.items() if (root is changed or node is changed) and node is not n]
        return any(self.order[user] > self.order[n] for name in names for user in name.users)
