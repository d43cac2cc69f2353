"""Tracing with addresses: torch.fx graphs whose every call knows where in the source network it is made.

Two ways of tracing share this file's base. The survey (:mod:`chansurg.surgery.survey.regions`) traces a network through, down to its
layers, to understand it. Rewriting (:mod:`chansurg.surgery.forwards.rewriting`) traces one module's forward with its children as single
calls, to change it. Both run the same Python code with the same non-tensor arguments, so that an
:class:`~chansurg.surgery.edits.Address` found by one names the same call in the other.
"""

from __future__ import annotations

import inspect
import operator
import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partialmethod
from itertools import zip_longest
from textwrap import shorten
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import checkpoint as checkpointing

from chansurg.surgery.edits import Address
from chansurg.surgery.edits.places import join_path
from chansurg.surgery.forwards.arguments import build, copied, is_empty, leaves

_RECOMPUTING = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")


class TraceFailure(Exception):
    """A forward that torch.fx cannot follow; the message is a reason a user can read."""


def operation_of(kind: str, target: Any) -> str:
    """The text by which an :class:`Address` names what a node calls."""
    if kind == "call_module":
        return f"self.{target}"
    if kind == "call_method":
        return f".{target}"
    module = getattr(target, "__module__", None) or "torch"
    if module in (__name__, "_operator", "torch._C._nn", "torch._C._VariableFunctions", "torch._ops.aten"):
        module = {__name__: "operator", "_operator": "operator", "torch._C._nn": "torch.nn.functional"}.get(module, "torch")
    return f"{module}.{getattr(target, '__name__', str(target))}"


def relative_path(ancestor: str, path: str) -> str:
    """``path`` as seen from ``ancestor``; unchanged where it does not lie below it."""
    return path.removeprefix(f"{ancestor}.") if ancestor else path


def untraced_functions() -> tuple[Callable[..., Any], ...]:
    """Functions that the network's library declares as not traceable (timm's list, where timm is in use)."""
    timm_fx = _timm_fx()
    return () if timm_fx is None else tuple(timm_fx.get_notrace_functions())


def untraced_modules() -> tuple[type[nn.Module], ...]:
    """Module classes that the network's library declares as not traceable (timm's list, where timm is in use)."""
    timm_fx = _timm_fx()
    return () if timm_fx is None else tuple(timm_fx.get_notrace_modules())


def _timm_fx() -> Any:
    return sys.modules.get("timm.layers") if "timm" in sys.modules else None


class InPlaceProxy(fx.Proxy):
    """A stand-in for a tensor on which ``x += y`` and ``x[i] = y`` stay what they are: they change the tensor under all its names."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    function = getattr(operator, name)

    # torch.fx writes operator.iadd(a, b) as a statement, which would also change a number that goes by the name of a.
    def in_place(a: Any, b: Any) -> Any:
        return function(a, b)

    in_place.__name__ = in_place.__qualname__ = name
    return in_place


def _traced_in_place(proxy: InPlaceProxy, other: Any, function: Callable[..., Any]) -> fx.Proxy:
    return proxy.tracer.create_proxy("call_function", function, (proxy, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(InPlaceProxy, f"__{_name}__", partialmethod(_traced_in_place, function=_in_place(_name)))


class AddressingTracer(fx.Tracer):
    """A torch.fx tracer that gives every call node ``meta["address"]``.

    Args:
        concrete: the root's arguments that are no tensors themselves, by name, as :mod:`chansurg.surgery.forwards.arguments` writes
            them. They keep their place in the signature; the graph is that of these values. Arguments not named are traced.
    """

    proxy_buffer_attributes = True

    def __init__(self, root_path: str, concrete: Mapping[str, Any]) -> None:
        functions = untraced_functions()
        super().__init__(autowrap_functions=functions)
        self.root_path = root_path
        self.concrete = concrete
        self._passed: dict[str, tuple[Any, Any]] = {}
        self.owners = [root_path]
        self.call_counts: Counter[tuple[str, str]] = Counter()
        self.changed: tuple[str, ...] = ()
        """Attributes that the forward set while it was traced; they were set back."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: Any = None) -> fx.Graph:
        """Trace ``root``; everything that may go wrong in foreign code becomes a :class:`TraceFailure`."""
        if "forward" in vars(root):
            raise TraceFailure("its forward was replaced on the instance")
        assert isinstance(root, nn.Module)
        random_numbers = _random_states()
        try:
            with unchanged(root) as changed, _recomputing_refused():
                graph = super().trace(root, concrete_args)
        except TraceFailure:
            raise
        except Exception as error:  # foreign forward code can raise anything when given proxies
            raise TraceFailure(readable_reason(error)) from error
        self.changed = tuple(changed)
        for name, (value, copy) in self._passed.items():
            if any(now is not then for now, then in zip_longest(leaves(value), leaves(copy))):
                raise TraceFailure(f"its forward changes its argument {name!r}")
        if _random_states() != random_numbers:
            raise TraceFailure("its forward draws random numbers that do not depend on its input, which a trace would freeze")
        return graph

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Every value that a forward sees."""
        return InPlaceProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """Values as a graph keeps them; torch.fx would make a plain dictionary of an ordered one."""
        if isinstance(a, OrderedDict):
            return self.create_proxy("call_function", OrderedDict, ([(key, value) for key, value in a.items()],), {}).node
        return super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the arguments that are traced; the recorded values for the others."""
        signature = inspect.signature(root_fn)
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        parameters = dict(list(signature.parameters.items())[1:])
        for name in [name for name, parameter in parameters.items() if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)]:
            if not is_empty(self.concrete.get(name)):
                raise TraceFailure(f"its forward takes a variable number of arguments (*{name})")
            del parameters[name]
        proxies = {
            name: self.create_proxy("placeholder", name, () if parameter.default is parameter.empty else (parameter.default,), {})
            for name, parameter in parameters.items()
        }
        for name, parameter in parameters.items():
            value: Any = proxies[name]
            if name in self.concrete:
                value = build(self.concrete[name], proxies[name])
                self._passed[name] = (value, copied(value))
            if parameter.kind is parameter.KEYWORD_ONLY:
                keywords[name] = value
            else:
                positional.append(value)
        return (lambda *args: root_fn(*args, **keywords)), positional

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Parameters and buffers become proxies, so that nothing computed from them alone is baked into the graph as a constant."""
        # Sizes of parameters are constants of the network; torch.fx offers that for parameters, and not for buffers.
        self.param_shapes_constant = isinstance(attr_val, nn.Parameter)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node with its address."""
        node = super().create_node(kind, target, *args, **kwargs)
        if kind in ("call_module", "call_function", "call_method"):
            owner = self.owners[-1]
            operation = operation_of(kind, target)
            if kind == "call_module":
                operation = f"self.{relative_path(owner, join_path(self.root_path, str(target)))}"
            count = self.call_counts[owner, operation]
            self.call_counts[owner, operation] += 1
            node.meta["address"] = Address(owner, operation, count)
        return node


@contextmanager
def _recomputing_refused() -> Iterator[None]:
    """Refuse forwards that recompute activations in the backward pass: a trace would go through, and the saving would be gone unnoticed."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TraceFailure("its forward recomputes activations in the backward pass (torch.utils.checkpoint)")

    # Whatever name a forward knows torch.utils.checkpoint.checkpoint by, it comes down to one of these; their names vary with the version.
    real = {name: value for name, value in vars(checkpointing).items() if name.startswith(_RECOMPUTING)}
    try:
        for name in real:
            setattr(checkpointing, name, SimpleNamespace(apply=refuse) if name == "CheckpointFunction" else refuse)
        yield
    finally:
        for name, value in real.items():
            setattr(checkpointing, name, value)


@contextmanager
def unchanged(root: nn.Module) -> Iterator[list[str]]:
    """Set back whatever attributes of ``root`` and the modules below it change meanwhile.

    A forward may keep something on its module from one call to the next: a cache, a counter, its last input. Where that happens with
    proxies or meta tensors it must not stay.

    Yields:
        A list that names the changed attributes afterwards. Constants that torch.fx stores on its root stay, and are not named.
    """
    before = [(path, module, dict(vars(module)), _contents(module)) for path, module in root.named_modules()]
    changed: list[str] = []
    try:
        yield changed
    finally:
        for path, module, attributes, contents in before:
            now = vars(module)
            for name in [name for name in now if name not in attributes and not name.startswith("_tensor_constant")]:
                changed.append(join_path(path, name))
                del now[name]
            for name, value in attributes.items():
                if name not in now or now[name] is not value:
                    changed.append(join_path(path, name))
                    now[name] = value
            for name, (held, items) in contents.items():
                if not _same_items(held, items):
                    changed.append(join_path(path, name))
                    held.clear()
                    if isinstance(held, list):
                        held.extend(items)
                    else:
                        held.update(items)


def _contents(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Lists, dictionaries and sets among a module's attributes, each with a copy."""
    return {name: (value, value.copy()) for name, value in vars(module).items() if isinstance(value, (list, dict, set))}


def _same_items(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[key] is b[key] for key in a)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True)) if isinstance(a, list) else bool(a == b)


def _random_states() -> tuple[Any, ...]:
    """The states of the random number generators that a forward may draw from, comparable with ``==``."""
    numpy = sys.modules.get("numpy")
    drawn = () if numpy is None else tuple(part.tobytes() if isinstance(part, numpy.ndarray) else part for part in numpy.random.get_state())
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), drawn


def readable_reason(error: BaseException) -> str:
    """One line of an exception, for a list of reasons."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    if isinstance(error, torch.fx.proxy.TraceError):
        if "cannot be iterated" in text:
            return "its forward loops over something in its input whose length is not known when it is traced"
        return "its forward decides by the values or sizes of its input"
    return f"{type(error).__name__}: {shorten(text, 160, placeholder=' …')}"
