"""Optimising for inference: the same function with less to do.

Norms are folded into the layers around them, calls that can no longer act in eval mode are removed, layers take the form that a
runtime runs fastest, and the weights the layout it likes best. What comes out is an ordinary module, not meant to be trained. It is
compared with the network before it is handed out: in float64, where nothing but rounding may be left, and in the network's own precision.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from chansurg.surgery.delivery import folding, small_maps
from chansurg.surgery.delivery.agreement import Agreement, compare, outputs
from chansurg.surgery.delivery.folding import Fold
from chansurg.surgery.delivery.signs import is_idle, nonnegative
from chansurg.surgery.editing.applying import perform
from chansurg.surgery.edits import Address, Bypass
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach, record_of, refuse_wrapped
from chansurg.surgery.layer import RecipeLayer, Target
from chansurg.surgery.survey import Survey, survey
from chansurg.surgery.survey.kinds import module_of, path_of, shape_of
from chansurg.surgery.survey.regions import Region

RUNTIMES = ("eager", "compile", "onnxruntime", "aoti", "export", "cuda-graph")
LAYOUTS = ("contiguous", "channels_last")
STEPS = ("folding", "removing", "forms")
ATTRIBUTE = "chansurg_optimization"
EXACT = 1e-9
"""What rounding may leave in float64, as a relative error."""
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
ROUNDINGS = 4.0
"""A network that rounds more than that by itself may differ by this many times its own rounding."""
_BATCH = 2


@dataclass(frozen=True)
class Optimization:
    """What :func:`optimize` did to a network.

    Args:
        runtime: what it was done for.
        layout: of the weights, ``contiguous`` or ``channels_last``.
        folded: norms that gave way, and where each went.
        removed: calls that did nothing.
        forms: layers that took another form, and its name.
        left: norms and steps that were left alone, with the reason.
        max_rel_error: from the network, in its own precision.
        max_rel_error_float64: the same in float64; ``None`` where the network does not run in it.
    """

    runtime: str
    layout: str
    folded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    forms: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
    max_rel_error: float = 0.0
    max_rel_error_float64: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **vars(self),
            "folded": {norm: list(layers) for norm, layers in self.folded.items()},
            "removed": list(self.removed),
            "forms": dict(self.forms),
            "left": dict(self.left),
        }


def optimize(
    model: nn.Module, example: Tensor | None = None, *, runtime: str = "eager", layout: str | None = None, seed: int = 0
) -> nn.Module:
    """The same function for inference, with less to do.

    Args:
        model: any module that takes one float tensor ``[B, C, H, W]``; it is not changed.
        example: an input ``[B, C, H, W]`` on the network's device, which the result is checked on; one of the record's size where left out.
        runtime: ``eager``, ``compile``, ``onnxruntime``, ``aoti``, ``cuda-graph``, or ``export`` for any program of torch's own operators.
        layout: of the weights, ``contiguous`` or ``channels_last``; left out, what ``runtime`` on the network's device likes best.
        seed: of the example that is drawn where none is given.

    Returns:
        A copy in eval mode, an ordinary module with the network's record; :func:`optimization_of` says what was done. A step after which
        the outputs differ by more than rounding is left out, and the reason stands under ``left``.

    Raises:
        InputError: for an unknown runtime or layout, a network wrapped in DataParallel and the like, or an input that it does not take.
    """
    _check_choice("runtime", runtime, RUNTIMES)
    if layout is not None:
        _check_choice("layout", layout, LAYOUTS)
    refuse_wrapped(model)
    original = copy.deepcopy(model).eval()
    home = next((tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()), torch.zeros(()))
    x = _example(model, seed) if example is None else example
    x = x.detach().to(home.device, home.dtype)
    expected = _expected(original, x)
    exact = _exact(original, x)
    folding.thaw(original)
    before = survey(original, tuple(x.shape[1:]))
    chosen = layout or best_layout(original, runtime, home)
    left = {path or "(the network)": f"it could not be traced: {reason}" for path, reason in before.untraced.items()}
    reason = ""
    for dropped in ((), *((step,) for step in reversed(STEPS)), STEPS):
        steps = [step for step in STEPS if step not in dropped]
        plan = _plan(before, original, Target("eager" if runtime == "cuda-graph" else runtime, home.device.type), steps)
        made = _in_layout(_carried_out(copy.deepcopy(original), plan), chosen)
        own = compare(expected, outputs(made, x))
        double = None if exact is None else _in_double(original, plan, exact)
        if dropped == STEPS or _is_the_same(own, double, exact, home.dtype, expected):
            left.update(dict.fromkeys(dropped, reason))
            break
        reason = reason or own.reason or f"the outputs would differ by {own.max_rel_error:.1e} of the largest"
    told = Optimization(
        runtime,
        chosen,
        {fold.norm: tuple(share.path for share in fold.shares) for fold in plan.folds},
        tuple(bypass.path for bypass in plan.removed),
        {
            path: type(made.get_submodule(path)).__name__
            for path in plan.forms
            if type(made.get_submodule(path)) is not type(original.get_submodule(path))
        },
        {**plan.left, **left},
        own.max_rel_error,
        None if double is None else double.max_rel_error,
    )
    object.__setattr__(made, ATTRIBUTE, told)
    return attach(made, record_of(model))


def optimization_of(model: nn.Module) -> Optimization | None:
    """What :func:`optimize` did to a network; ``None`` where it comes from elsewhere."""
    found = getattr(model, ATTRIBUTE, None)
    return found if isinstance(found, Optimization) else None


def best_layout(model: nn.Module, runtime: str, home: Tensor) -> str:
    """The layout of weights that a runtime likes best: ``channels_last`` where convolutions run in it, ``contiguous`` elsewhere."""
    convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if runtime in ("onnxruntime", "export") or not convolves:
        return "contiguous"
    return "channels_last"


@dataclass
class _Plan:
    folds: list[Fold] = field(default_factory=list)
    bypassed_norms: list[Bypass] = field(default_factory=list)
    removed: list[Bypass] = field(default_factory=list)
    signatures: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    forms: dict[str, Target] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


def _plan(surveyed: Survey, network: nn.Module, target: Target, steps: list[str]) -> _Plan:
    plan = _Plan()
    signs = [nonnegative(region.nodes) for region in surveyed.regions]
    if "folding" in steps:
        plan.folds += folding.norms_inside(network)
    for region, found in zip(surveyed.regions, signs, strict=True):
        for node in region.nodes:
            if "folding" in steps:
                _plan_fold(plan, surveyed, region, node)
            if "removing" in steps and is_idle(node, found):
                _plan_bypass(plan, plan.removed, surveyed, region, node)
    if "forms" in steps:
        for path, module in network.named_modules():
            if isinstance(module, RecipeLayer | nn.Conv2d):
                plan.forms[path] = _target(target, path, surveyed, signs)
    return plan


def _target(target: Target, path: str, surveyed: Survey, signs: list[dict[fx.Node, bool]]) -> Target:
    """The target of the layer at a path, with what all its calls have in common."""
    calls = [
        (all(found[source] for source in node.all_input_nodes), tuple(shape_of(source) for source in node.all_input_nodes))
        for region, found in zip(surveyed.regions, signs, strict=True)
        for node in region.nodes
        if node.op == "call_module" and path_of(node) == path
    ]
    shapes = {given for _, given in calls}
    known = tuple(shape for shape in next(iter(shapes)) if shape is not None) if len(shapes) == 1 else ()
    whole = known if shapes == {known} else ()
    return replace(target, nonnegative=bool(calls) and all(positive for positive, _ in calls), shapes=whole)


def _plan_fold(plan: _Plan, surveyed: Survey, region: Region, node: fx.Node) -> None:
    found = folding.find_fold(surveyed, region, node)
    if isinstance(found, str):
        plan.left[path_of(node)] = found
    elif found is not None:
        plan.folds.append(found)
        norm = module_of(node)
        if norm is not None and folding.activation_of(norm) is None:
            _plan_bypass(plan, plan.bypassed_norms, surveyed, region, node)


def _plan_bypass(plan: _Plan, bypasses: list[Bypass], surveyed: Survey, region: Region, node: fx.Node) -> None:
    """Take a call out, where the code that makes it can be rewritten; else it stays, and costs next to nothing."""
    address = node.meta.get("address")
    if not isinstance(address, Address) or surveyed.uneditable(region, node, replaces=False) is not None:
        return
    bypasses.append(Bypass(address))
    plan.signatures[address.owner] = surveyed.signature(region, address.owner)


def _carried_out(network: nn.Module, plan: _Plan) -> nn.Module:
    """Carry the plan out, in place."""
    for fold in plan.folds:
        folding.carry_out(network, fold)
    perform(network, [*plan.bypassed_norms, *plan.removed], plan.signatures, seed=None)
    forms: dict[int, nn.Module] = {}
    for path, target in plan.forms.items():
        layer = network.get_submodule(path)
        form = layer.for_runtime(target) if isinstance(layer, RecipeLayer) else small_maps.form_for(cast(nn.Conv2d, layer), target)
        forms[id(layer)] = form.eval()
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) in forms:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, forms[id(module)])
    return network


def _in_layout(network: nn.Module, layout: str) -> nn.Module:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return network.to(memory_format=memory_format)


def _in_double(original: nn.Module, plan: _Plan, exact: tuple[Tensor, Any]) -> Agreement:
    made = _carried_out(copy.deepcopy(original).double(), plan)
    return compare(exact[1], outputs(made, exact[0]))


def _exact(original: nn.Module, x: Tensor) -> tuple[Tensor, Any] | None:
    """The example in float64 and what the network makes of it; ``None`` where it does not run in float64."""
    if x.device.type == "mps":
        return None
    wide = copy.deepcopy(original).double()
    try:
        return x.double(), outputs(wide, x.double())
    except Exception:  # a network that makes tensors of a fixed precision by itself fails in ways of its own
        return None


def _is_the_same(own: Agreement, double: Agreement | None, exact: tuple[Tensor, Any] | None, dtype: torch.dtype, expected: Any) -> bool:
    if own.reason is not None:
        return False
    rounding = 0.0 if exact is None else compare(exact[1], expected).max_rel_error
    within = own.max_rel_error <= max(TOLERANCE.get(dtype, EXACT), ROUNDINGS * rounding)
    return within and (double is None or double.max_rel_error <= EXACT)


def _expected(original: nn.Module, x: Tensor) -> Any:
    try:
        return outputs(original, x)
    except Exception as error:
        raise InputError(
            f"The network does not run on an input of shape {list(x.shape)}: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=type(original).__name__,
            not_done="It was not optimised.",
            to_do="Pass an example that it takes: chansurg.optimize(model, torch.randn(1, C, H, W)).",
        ) from error


def _example(model: nn.Module, seed: int) -> Tensor:
    size = record_of(model).preprocessing.input_size
    return torch.randn(_BATCH, *size, generator=torch.Generator().manual_seed(seed))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(
            f"{value!r} is no {name}.",
            where=f"option {name}",
            not_done="The network was not optimised.",
            to_do=f"Choose one of {', '.join(choices)}.",
        )
