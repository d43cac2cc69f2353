"""Tracing with addresses: torch.fx graphs whose every call knows where in the source network it is made.

Two ways of tracing share this file's base. The survey (:mod:`chansurg.surgery.survey.regions`) traces a network through, down to its
layers, to understand it. Rewriting (:mod:`chansurg.surgery.rewriting`) traces one module's forward with its children as single calls, to
change it. Both run the same Python code with the same non-tensor arguments, so that an :class:`~chansurg.surgery.edits.Address` found by
one names the same call in the other.
"""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from chansurg.surgery.edits import Address


class TraceFailure(Exception):
    """A forward that torch.fx cannot follow; the message is a reason a user can read."""


def operation_of(kind: str, target: Any) -> str:
    """The text by which an :class:`Address` names what a node calls."""
    if kind == "call_module":
        return f"self.{target}"
    if kind == "call_method":
        return f".{target}"
    module = getattr(target, "__module__", None) or "torch"
    if module in ("_operator", "torch._C._nn", "torch._C._VariableFunctions", "torch._ops.aten"):
        module = {"_operator": "operator", "torch._C._nn": "torch.nn.functional"}.get(module, "torch")
    return f"{module}.{getattr(target, '__name__', str(target))}"


def join_path(parent: str, child: str) -> str:
    """A module's path from its parent's and its own name; the network itself is ``""``."""
    return f"{parent}.{child}" if parent and child else parent or child


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


class AddressingTracer(fx.Tracer):
    """A torch.fx tracer that gives every call node ``meta["address"]``.

    Args:
        concrete: the root's arguments that are not tensors, by name. They keep their place in the signature; the graph is that of these
            values. Arguments not named are traced.
    """

    proxy_buffer_attributes = True

    def __init__(self, root_path: str, concrete: Mapping[str, Any]) -> None:
        functions = untraced_functions()
        super().__init__(autowrap_functions=functions)
        self.root_path = root_path
        self.concrete = dict(concrete)
        self.owners = [root_path]
        self.call_counts: Counter[tuple[str, str]] = Counter()

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: Any = None) -> fx.Graph:
        """Trace ``root``; everything that may go wrong in foreign code becomes a :class:`TraceFailure`."""
        if "forward" in vars(root):
            raise TraceFailure("its forward was replaced on the instance")
        try:
            return super().trace(root, concrete_args)
        except TraceFailure:
            raise
        except Exception as error:  # foreign forward code can raise anything when given proxies
            raise TraceFailure(readable_reason(error)) from error

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Placeholders for the arguments that are traced; the recorded values for the others."""
        signature = inspect.signature(root_fn)
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        for name, parameter in list(signature.parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                if name in self.concrete:
                    continue
                raise TraceFailure(f"its forward takes a variable number of arguments (*{name})")
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxy = self.create_proxy("placeholder", name, default, {})
            value = self.concrete.get(name, proxy)
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


def readable_reason(error: BaseException) -> str:
    """One line of an exception, for a list of reasons."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    if isinstance(error, torch.fx.proxy.TraceError):
        return f"its forward decides by the values or sizes of its input ({text[:120]})"
    return f"{type(error).__name__}: {text[:160]}"
