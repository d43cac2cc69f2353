"""Rewriting one module's forward, and nothing else of it.

The smallest module that makes a call is the one whose code changes. Its forward is traced with its children as single calls, the graph
is edited, and the code made from the graph becomes the forward of a subclass with the same name. The module keeps its identity: its
type, its attributes, its hooks, its children and their state-dict keys. A forward that reads ``self.training`` is traced in both modes,
and where the two differ only in values, the generated code reads ``self.training`` too, so the train/eval switch stays alive.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from chansurg.surgery.edits import Address
from chansurg.surgery.forwards.arguments import matches
from chansurg.surgery.forwards.rewritten_class import Forward
from chansurg.surgery.forwards.tracing import AddressingTracer, TraceFailure


class _ChildrenAreLeaves(AddressingTracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """``in_training`` or ``in_eval``: a constant of a traced forward that depends on ``self.training``."""
    return in_training if training else in_eval


def expect(name: str, value: Any, recorded: Any) -> None:
    """Refuse an argument other than the one a forward was rewritten for; for lists of tensors, another number of them.

    Raises:
        ValueError: where they differ; the generated code knows no other case.
    """
    if not matches(value, recorded):
        raise ValueError(f"this rewritten forward was made for {name}={recorded!r}, and was called with another: {value!r:.200}")


def trace_forward(module: nn.Module, path: str, concrete: Mapping[str, Any]) -> fx.Graph:
    """The graph of one module's own forward, its children as single calls.

    Args:
        module: on any device; neither its numbers nor its flags are changed.
        path: its path in the network, for addresses.
        concrete: the arguments that are no tensors themselves in this network, as :mod:`chansurg.surgery.forwards.arguments` writes them.

    Raises:
        TraceFailure: where torch.fx cannot follow the forward, or it takes different paths in training and in eval mode.
    """
    was_training = module.training
    graphs: list[fx.Graph] = []
    constants: list[dict[str, Any]] = []
    changed: set[str] = set()
    known = set(vars(module))
    try:
        for mode in (True, False):
            module.training = mode
            tracer = _ChildrenAreLeaves(path, concrete)
            graphs.append(tracer.trace(module))
            constants.append({name: vars(module).pop(name) for name in sorted(set(vars(module)) - known)})
            changed.update(tracer.changed)
    finally:
        module.training = was_training
        for name in set(vars(module)) - known:
            del vars(module)[name]
    if changed:
        raise TraceFailure(f"its forward keeps something from one call to the next ({', '.join(sorted(changed)[:3])})")
    graph = _merge(graphs[1], graphs[0])
    _note_constants(graph, *constants)
    for node in graph.nodes:
        if node.op == "placeholder" and node.target in concrete:
            anchor = node
            while anchor.next.op == "placeholder":
                anchor = anchor.next
            with graph.inserting_after(anchor):
                graph.call_function(expect, (node.target, node, concrete[node.target]))
    return graph


def _note_constants(graph: fx.Graph, in_training: Mapping[str, Any], in_eval: Mapping[str, Any]) -> None:
    """Put tensors that the forward makes from constants alone beside the nodes that read them; :func:`install` makes them buffers."""
    for name, value in in_eval.items():
        if not isinstance(value, torch.Tensor) or value.is_meta:
            raise TraceFailure("its forward computes a value that does not depend on its input")
        if name not in in_training or not torch.equal(value, in_training[name]):
            raise TraceFailure("its forward makes a constant that is not the same each time")
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in in_eval:
            node.meta["constant"] = in_eval[str(node.target)]


def _merge(in_eval: fx.Graph, in_training: fx.Graph) -> fx.Graph:
    """The eval-mode graph, with constants that differ in training read from ``self.training``.

    Raises:
        TraceFailure: where the two differ in more than constants.
    """
    other = TraceFailure("its forward takes different paths in training and in eval mode")
    pairs = list(zip(in_eval.nodes, in_training.nodes, strict=False))
    if len(in_eval.nodes) != len(in_training.nodes):
        raise other
    same = {trained: node for node, trained in pairs}
    switch: fx.Node | None = None

    def select(node: fx.Node, eval_value: Any, train_value: Any) -> Any:
        nonlocal switch
        if isinstance(eval_value, fx.Node) or isinstance(train_value, fx.Node):
            if isinstance(train_value, fx.Node) and same.get(train_value) is eval_value:
                return eval_value
            raise other
        if isinstance(eval_value, slice) and isinstance(train_value, slice):
            parts = ("start", "stop", "step")
            return slice(*(select(node, getattr(eval_value, part), getattr(train_value, part)) for part in parts))
        if isinstance(eval_value, (list, tuple)) and isinstance(train_value, (list, tuple)) and len(eval_value) == len(train_value):
            items = [select(node, a, b) for a, b in zip(eval_value, train_value, strict=True)]
            return type(eval_value)(*items) if hasattr(eval_value, "_fields") else type(eval_value)(items)
        if isinstance(eval_value, dict) and isinstance(train_value, dict) and eval_value.keys() == train_value.keys():
            return {key: select(node, value, train_value[key]) for key, value in eval_value.items()}
        if type(eval_value) is type(train_value) and (eval_value is train_value or eval_value == train_value):
            return eval_value
        if switch is None:
            first = next(iter(n for n in in_eval.nodes if n.op != "placeholder"))
            with in_eval.inserting_before(first):
                switch = in_eval.create_node("get_attr", "training")
        if train_value is True and eval_value is False:
            return switch
        with in_eval.inserting_before(node):
            return in_eval.call_function(by_mode, (switch, train_value, eval_value))

    for node, trained in pairs:
        if (node.op, node.target) != (trained.op, trained.target):
            raise other
        node.args = select(node, node.args, trained.args)
        node.kwargs = select(node, node.kwargs, trained.kwargs)
    return in_eval


def graph_hash(graph: fx.Graph) -> str:
    """A hash of what a graph computes, free of node names; it tells whether a library has changed a forward underneath a file."""
    numbers: dict[fx.Node, int] = {}
    lines = []
    for number, node in enumerate(graph.nodes):
        numbers[node] = number
        address = node.meta.get("address")
        target = address.operation if isinstance(address, Address) else str(node.target)
        if callable(node.target):
            target = f"{getattr(node.target, '__name__', node.target)}"
        args = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _Reference(numbers[n]))
        lines.append(f"{node.op} {target} {args}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class _Reference(str):
    def __new__(cls, number: int) -> _Reference:
        return super().__new__(cls, f"%{number}")


def install(module: nn.Module, graph: fx.Graph) -> None:
    """Make ``graph`` the module's forward, in place. Its class becomes a subclass of the one it had, with the same name."""
    if _is_its_children_in_order(module, graph):
        return
    for node in graph.nodes:
        if "constant" in node.meta and not hasattr(module, str(node.target)):
            # A buffer follows its module to another device; it is no part of the state dict.
            module.register_buffer(str(node.target), node.meta["constant"], persistent=False)
    graph.lint()
    code = graph.python_code("self")
    module.__class__ = Forward(original_class(module), code.src, code.globals).rewritten


def give_back_original(module: nn.Module, path: str, concrete: Mapping[str, Any], graph: fx.Graph) -> bool:
    """Give the module its original class again where that already does what ``graph`` says; whether it was done.

    Args:
        module: rewritten before.
        path: its path in the network.
        concrete: as for :func:`trace_forward`.
        graph: what its forward is to do now.
    """
    rewritten, base = type(module), original_class(module)
    if base is rewritten:
        return False
    module.__class__ = base
    try:
        if graph_hash(trace_forward(module, path, concrete)) == graph_hash(graph):
            return True
    except TraceFailure:
        pass
    module.__class__ = rewritten
    return False


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class a module had before its forward was ever rewritten."""
    base: type[nn.Module] = getattr(type(module), "rewritten_from", type(module))
    return base


def _is_its_children_in_order(module: nn.Module, graph: fx.Graph) -> bool:
    """Whether the module's own ``nn.Sequential`` forward already does what the graph says."""
    if type(module).forward is not nn.Sequential.forward:
        return False
    nodes = list(graph.nodes)
    calls = nodes[1:-1]
    return (
        [node.target for node in calls] == list(module._modules)
        and all(node.op == "call_module" and node.args == (before,) and not node.kwargs for before, node in itertools.pairwise(nodes[:-1]))
        and nodes[-1].args == (nodes[-2],)
    )


def find_call(graph: fx.Graph, address: Address) -> fx.Node | None:
    """The node at an address, or ``None``."""
    return next((node for node in graph.nodes if node.meta.get("address") == address), None)


def insert_before(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Put a call of child ``name`` on the first input of ``node``."""
    source = first_input(node)
    with graph.inserting_before(node):
        new = graph.call_module(name, (source,))
    node.replace_input_with(source, new)


def attach_after(graph: fx.Graph, node: fx.Node, read: fx.Node, name: str) -> None:
    """Put a call of child ``name`` on the output of ``node`` and the first input of ``read``; all readers of the output get its result."""
    source = first_input(read)
    with graph.inserting_after(node):
        new = graph.call_module(name, (node, source))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def replace_call(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Put a call of child ``name`` in the place of ``node``, on the same tensors in the same order."""
    sources: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), sources.append)
    with graph.inserting_before(node):
        new = graph.call_module(name, tuple(sources))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def bypass(graph: fx.Graph, node: fx.Node) -> None:
    """Remove ``node``; its first input takes the place of its output."""
    node.replace_all_uses_with(first_input(node))
    graph.erase_node(node)


def first_input(node: fx.Node) -> fx.Node:
    """The node whose output is the first input of ``node``."""
    if not node.all_input_nodes:
        raise TraceFailure(f"the call {node.name} has no input")
    source = node.args[0] if node.args else node.all_input_nodes[0]
    return source if isinstance(source, fx.Node) else node.all_input_nodes[0]


def called_children(graph: fx.Graph) -> set[str]:
    """Names, relative to the module, of everything the graph calls or reads."""
    return {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
