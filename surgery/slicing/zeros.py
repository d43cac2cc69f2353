"""Which elementwise functions give exactly zero for zero, in floating point, whatever the precision."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from chansurg.surgery.survey.kinds import function_name, module_of

_PRESERVING = frozenset(
    (
        "relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish tanh swish hard_swish hard_mish quick_gelu gelu_tanh "
        "rrelu softsign quickgelu gelutanh hardswishme swishme mishme abs neg square sqrt sin erf hardshrink softshrink tanhshrink "
        "leakyrelu"
    ).split()
)
_KEEPING = frozenset(("sigmoid hardsigmoid hard_sigmoid softplus logsigmoid exp cos log rsqrt reciprocal threshold").split())
_BOUNDED = frozenset(("hardtanh", "clamp", "clip"))


def is_unary(node: fx.Node) -> bool:
    """Whether a node is an elementwise function of one tensor that :func:`keeps_zero` knows."""
    name = _name(node)
    return name in _PRESERVING or name in _KEEPING or name in _BOUNDED


def keeps_zero(node: fx.Node) -> bool:
    """Whether the elementwise function that a node calls gives zero for zero."""
    name = _name(node)
    if name not in _BOUNDED:
        return name in _PRESERVING
    module = module_of(node)
    if module is not None:
        low, high = getattr(module, "min_val", None), getattr(module, "max_val", None)
    else:
        default = (-1.0, 1.0) if name == "hardtanh" else (None, None)
        low = _bound(node, 1, ("min_val", "min"), default[0])
        high = _bound(node, 2, ("max_val", "max"), default[1])
    known = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    return known and (low is None or low <= 0) and (high is None or high >= 0)


def _bound(node: fx.Node, position: int, names: tuple[str, str], default: float | None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def _name(node: fx.Node) -> str:
    module = module_of(node)
    if module is None:
        return function_name(node)
    by_channel = isinstance(module, nn.PReLU) and module.num_parameters > 1
    return "" if by_channel else type(module).__name__.lower()
