"""Regions: the parts of a network that torch.fx can follow, as flat graphs of layers with shapes.

The whole network is one region where that works; else the largest parts that can be traced are, and every part that could not be keeps its
reason. Everything happens on a meta copy, so no arithmetic is spent and the caller's network is never touched.

A node's ``meta`` carries ``address`` (an :class:`~chansurg.surgery.edits.Address`), ``owners`` (paths of the modules whose forwards it is
made in, the outermost first), ``shape`` (a tuple, or ``None`` where unknown), and for module calls ``module`` (the meta module) and
``path`` (its full path).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from chansurg.surgery.edits import Address
from chansurg.surgery.edits.places import join_path
from chansurg.surgery.forwards.arguments import TENSOR, NotPlain, copied, describe
from chansurg.surgery.forwards.tracing import (
    AddressingTracer,
    TraceFailure,
    readable_reason,
    relative_path,
    unchanged,
    untraced_modules,
)
from chansurg.surgery.layer import RecipeLayer

LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Linear,
    nn.Embedding,
    nn.MultiheadAttention,
    RecipeLayer,
)


@dataclass
class Call:
    """How a module was called.

    Args:
        concrete: the arguments that are no tensors, as the room ``forwards`` writes them.
        reason: why they cannot be written down, if so.
        address: where the call is made; ``None`` where the network was only watched, as below.
        source: what goes into the first argument, where that is a tensor.
        result: what comes out, where that is a tensor.
    """

    concrete: dict[str, Any]
    reason: str | None = None
    address: Address | None = None
    source: fx.Node | None = None
    result: fx.Node | None = None


@dataclass
class Region:
    """One traced part of a network.

    Args:
        path: path of the traced module.
        graph: its flat graph; see the module's docstring for the nodes' ``meta``.
        root: the meta module that was traced.
        call: how it was called itself.
        calls: every call of every module below, by path.
        shapes_reason: why shapes are missing from some node on, if they are.
    """

    path: str
    graph: fx.Graph
    root: nn.Module
    call: Call
    calls: Mapping[str, list[Call]]
    shapes_reason: str | None = None

    @property
    def nodes(self) -> list[fx.Node]:
        """The graph's nodes, in order of execution."""
        return list(self.graph.nodes)


@dataclass
class Regions:
    """All regions of a network, the parts that are in none with the reason, and then how often each module was called."""

    found: list[Region] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)
    observed: dict[str, int] = field(default_factory=dict)


class SurveyTracer(AddressingTracer):
    """Traces through everything but layers, and notes how every module is called."""

    def __init__(self, root_path: str, concrete: Mapping[str, Any]) -> None:
        super().__init__(root_path, concrete)
        self.calls: dict[str, list[Call]] = {}
        self.leaves = (*LAYERS, *untraced_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers by ``isinstance``; what the library declares; what reads ``self.training`` and has no layers of its own."""
        if isinstance(m, self.leaves):
            return True
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return next(m.children(), None) is None and reads_training(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record the call, then either make it one node or follow it."""
        target = self.path_of_module(m)
        path = join_path(self.root_path, target)
        call = describe_call(m, args, kwargs, fx.Proxy)
        self.calls.setdefault(path, []).append(call)
        if self.is_leaf_module(m, target):
            return self.create_proxy("call_module", target, args, kwargs)
        owner = self.owners[-1]
        operation = f"self.{relative_path(owner, path)}"
        call.address = Address(owner, operation, self.call_counts[owner, operation])
        self.call_counts[owner, operation] += 1
        self.owners.append(path)
        try:
            result = forward(*args, **kwargs)
        finally:
            self.owners.pop()
        call.source = args[0].node if args and isinstance(args[0], fx.Proxy) else None
        call.result = result.node if isinstance(result, fx.Proxy) else None
        return result

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node that knows all the forwards that it is made in, the outermost first."""
        node = super().create_node(kind, target, *args, **kwargs)
        node.meta["owners"] = tuple(self.owners)
        return node


def reads_training(module: nn.Module) -> bool:
    """Whether a module's own forward looks at ``self.training``."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


def describe_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], traced: type) -> Call:
    """Write down a call's arguments that are no tensors (``traced`` values) themselves."""
    try:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    except (TypeError, ValueError) as error:
        return Call({}, f"its forward's signature cannot be read ({error})")
    bound.apply_defaults()
    concrete: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        try:
            described = describe(value, traced)
        except NotPlain:
            return Call(concrete, f"its argument {name!r} is neither a tensor nor a plain value")
        if described != TENSOR:
            concrete[name] = described
    return Call(concrete)


class GraphPlayer(fx.Interpreter):
    """Runs a region's graph, with the graph's immutable lists as ordinary ones: some functions change theirs in place."""

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The node's arguments."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return tuple(_ordinary(arg) for arg in args), {name: _ordinary(arg) for name, arg in kwargs.items()}


class ShapeRecorder(GraphPlayer):
    """Runs a graph on meta tensors and writes ``meta["shape"]`` (and ``meta["dtype"]``) on every node it reaches."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.root, garbage_collect_values=True, graph=region.graph)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note what came out."""
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = tuple(result.shape)
            n.meta["dtype"] = result.dtype
        elif isinstance(result, (tuple, list)) and all(isinstance(item, torch.Tensor) for item in result):
            n.meta["shapes"] = tuple(tuple(item.shape) for item in result)
        return result


@contextmanager
def batch_norms_skipped(module: nn.Module) -> Iterator[None]:
    """Batch norms hand their input on: what they put out is shaped as it is, and computing that costs most of the time of all shapes."""
    with unchanged(module):
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and type(part).__module__.startswith("torch.nn."):
                part.forward = _first_argument  # type: ignore[method-assign]
        yield


def _first_argument(input: Any) -> Any:
    return input


def _ordinary(value: Any) -> Any:
    return [_ordinary(item) for item in value] if isinstance(value, list) else value


def find_regions(network: nn.Module, example: torch.Tensor) -> Regions:
    """Trace a meta network.

    Args:
        network: on the meta device, in eval mode (:func:`~chansurg.surgery.forwards.skeleton.meta_copy`).
        example: a meta tensor ``[B, C, H, W]``, the network's input; a network that needs several gets it as each of them.
    """
    regions = Regions()
    # A library's "not traceable" list holds for the modules of a network; a network that is on it is opened up, not taken as one call.
    inputs = example_inputs(network, example)
    try:
        call = describe_call(network, inputs, {}, torch.Tensor)
        regions.found.append(_trace(network, "", call, inputs, {}))
    except TraceFailure as failure:
        regions.untraced[""] = str(failure)
        seen = _observe(network, inputs)
        regions.observed = {path: count for path, (*_, count) in seen.items()}
        for name, child in network.named_children():
            _descend(child, name, seen, regions)
    return regions


def example_inputs(network: nn.Module, example: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The example for each input that a network cannot do without; a pair of images, say. At least one."""
    try:
        parameters = list(inspect.signature(type(network).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return (example,)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(1 for parameter in parameters if parameter.kind in positional and parameter.default is parameter.empty)
    return (example,) * max(1, required)


def _descend(module: nn.Module, path: str, seen: Mapping[str, tuple[Any, ...]], regions: Regions) -> None:
    if not any(isinstance(child, LAYERS) for child in module.modules()):
        return
    if path in seen and not isinstance(module, LAYERS):
        call, args, kwargs, count = seen[path]
        if count == 1:
            try:
                if call.reason is not None:
                    raise TraceFailure(call.reason)
                regions.found.append(_trace(module, path, call, args, kwargs))
                return
            except TraceFailure as failure:
                regions.untraced[path] = str(failure)
        else:
            regions.untraced[path] = f"it is called {count} times"
    elif path not in seen:
        regions.untraced[path] = "it was not reached when the network ran on shapes alone"
    for name, child in module.named_children():
        _descend(child, f"{path}.{name}", seen, regions)


def _trace(module: nn.Module, path: str, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Region:
    tracer = SurveyTracer(path, call.concrete)
    graph = tracer.trace(module)
    region = Region(path, graph, module, call, tracer.calls)
    for node in graph.nodes:
        if node.op == "call_module":
            node.meta["path"] = join_path(path, str(node.target))
            node.meta["module"] = module.get_submodule(str(node.target))
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    bound.apply_defaults()
    inputs = [copied(value) for value in list(bound.arguments.values())[1:]]
    wanted = _operations(module, args, kwargs)
    computed = OperationLog()
    try:
        with torch.no_grad(), batch_norms_skipped(module), computed:
            ShapeRecorder(region).run(*inputs)
    except Exception as error:  # a meta kernel may be missing, or the input size impossible for the network
        region.shapes_reason = readable_reason(error)
        return region
    if wanted is not None and wanted != computed.operations:
        raise TraceFailure("its forward computes something else on tensors than on the stand-ins of a trace")
    return region


class OperationLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation on meta tensors, with the shapes that come out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation and note it."""
        result = func(*args, **(kwargs or {}))
        found = [item for item in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(item, torch.Tensor)]
        if any(item.is_meta for item in found):
            self.operations.append((str(func), tuple(tuple(item.shape) for item in found)))
        return result


def _operations(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """What a meta module computes when it is called for real; ``None`` where it cannot run on shapes alone."""
    log = OperationLog()
    try:
        with torch.no_grad(), batch_norms_skipped(module), log:
            module(*copied(args), **copied(dict(kwargs)))
    except Exception:  # the same as for the trace: a missing meta kernel, or a decision by values
        return None
    return log.operations


def _observe(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, tuple[Any, ...]]:
    """Run a meta network once and note how each module is first called, and how often."""
    seen: dict[str, tuple[Any, ...]] = {}
    handles = []

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path in seen:
                *first, count = seen[path]
                seen[path] = (*first, count + 1)
            else:
                seen[path] = (describe_call(module, args, kwargs, torch.Tensor), copied(args), copied(kwargs), 1)

        return hook

    for path, module in network.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(watch(path), with_kwargs=True))
    try:
        with torch.no_grad(), unchanged(network):
            network(*inputs)
    except Exception:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen
