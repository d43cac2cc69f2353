"""Which tensors of a network hold no negative number, so that what would cut negative numbers off has nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from chansurg.surgery.delivery.folding import activation_of
from chansurg.surgery.gating import Gate
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey.kinds import function_name, is_layout_change, is_neutral, is_pooling, module_of, tensor_inputs

_MAKING = frozenset("relu relu6 sigmoid hardsigmoid softplus softmax abs exp square".split())
_KEEPING = frozenset(
    (
        "add iadd mul imul multiply div truediv itruediv mean sum amax amin minimum cat concat concatenate stack getitem chunk split "
        "unbind squeeze unsqueeze narrow select flip roll expand repeat sqrt"
    ).split()
)
_CHANGING = frozenset("isub iadd imul itruediv ifloordiv imod ipow setitem".split())


def nonnegative(nodes: list[fx.Node]) -> dict[fx.Node, bool]:
    """For each node of a traced graph: whether what it puts out can be shown to hold no negative number, in eval mode."""
    changed: set[fx.Node] = set()
    while True:
        found: dict[fx.Node, bool] = {}
        for node in nodes:
            found[node] = node not in changed and _is_nonnegative(node, found)
        # What is changed in place afterwards is another tensor under the same name.
        late = {node.all_input_nodes[0] for node in nodes if _changes_in_place(node) and not found[node] and node.all_input_nodes}
        if late <= changed:
            return found
        changed |= late


def _is_nonnegative(node: fx.Node, found: Mapping[fx.Node, bool]) -> bool:
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    module, inputs = module_of(node), node.all_input_nodes
    name = type(module).__name__.lower() if module is not None else function_name(node)
    if module is not None and (activation := activation_of(module)) is not None:
        name = type(activation).__name__.lower()
    if name in _MAKING:
        return module is None or _is_torchs_own(activation_of(module) or module)
    if not inputs:
        return False
    if isinstance(module, RecipeLayer):
        multiplied = inputs[:1] if isinstance(module, Gate) else inputs
        return module.keeps_nonnegative and all(found[source] for source in multiplied)
    if name in ("clamp", "clip", "hardtanh", "clamp_min"):
        least = getattr(module, "min_val", None) if module is not None else _argument(node, 1, ("min", "min_val"))
        return isinstance(least, (int, float)) and least >= 0
    if name in ("maximum", "max") and len(inputs) == 2:
        return any(found[source] for source in inputs)
    keeps = name in _KEEPING or is_layout_change(node) or is_neutral(node) or (is_pooling(node) and _resamples_within(node))
    return keeps and all(found[source] for source in inputs) and not _has_negative_number(node)


def _resamples_within(node: fx.Node) -> bool:
    """Whether padding or resampling brings in no negative number."""
    module: Any = module_of(node)
    mode = getattr(module, "mode", None) if module is not None else _argument(node, 3, ("mode",))
    value = getattr(module, "value", None) if module is not None else _argument(node, 3, ("value",))
    overshoots = mode == "bicubic" or "bicubic" in (*node.args, *node.kwargs.values())
    return not overshoots and not (isinstance(value, (int, float)) and value < 0)


def _has_negative_number(node: fx.Node) -> bool:
    if function_name(node) not in ("add", "iadd", "mul", "imul", "multiply", "div", "truediv", "itruediv"):
        return False
    return any(isinstance(value, (int, float)) and value < 0 for value in (*node.args, *node.kwargs.values()))


def _changes_in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_")
    name = str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""
    return name in _CHANGING or name.endswith("_") or bool(getattr(module_of(node), "inplace", False))


def _argument(node: fx.Node, position: int, names: tuple[str, ...]) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def _is_torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def is_idle(node: fx.Node, found: Mapping[fx.Node, bool]) -> bool:
    """Whether a call gives back what it is given, in eval mode.

    Args:
        node: any node.
        found: from :func:`nonnegative`.
    """
    inputs, module = tensor_inputs(node), module_of(node)
    if not inputs:
        return False
    if module is None:
        name = function_name(node)
        if name in ("relu", "abs"):
            return found.get(inputs[0], False)
        inactive = _argument(node, 2, ("training",)) is False
        return node.op == "call_function" and name.endswith("dropout") and inactive
    if type(module) is nn.ReLU:
        return found.get(inputs[0], False)
    home = type(module).__module__.partition(".")[0]
    return is_neutral(node) and home in ("torch", "torchvision", "timm")
