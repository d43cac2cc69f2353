"""Rewriting without an edit: the proof that rewriting by itself changes nothing.

Every module of a survey gets the forward that was generated from its own trace, and no edit. The network must then be the function it
was, in both modes. What holds for every module of every network that was tried holds for the few modules that a conversion rewrites.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.forwards.rewriting import install, trace_forward
from chansurg.surgery.forwards.tracing import TraceFailure
from chansurg.surgery.nested import tensors_in
from chansurg.surgery.survey import Region, Survey


@dataclass(frozen=True)
class IdentityReport:
    """What became of every module whose forward makes calls that the survey traced.

    Args:
        rewritten: paths of the modules that now run the code generated from their own trace.
        left: path and reason of each that keeps the code it had.
    """

    rewritten: tuple[str, ...]
    left: Mapping[str, str]


def rewrite_without_edits(network: nn.Module, survey: Survey) -> IdentityReport:
    """Give every surveyed module of ``network`` the forward generated from its own trace, in place.

    Args:
        network: the surveyed network, or a copy of it.
        survey: of that network.
    """
    rewritten: list[str] = []
    left: dict[str, str] = {}
    for region in survey.regions:
        for path in survey.owners(region):
            try:
                module = network.get_submodule(path)
                install(module, trace_forward(module, path, _arguments(survey, region, path)))
                rewritten.append(path)
            except TraceFailure as failure:
                left[path] = str(failure)
    return IdentityReport(tuple(rewritten), left)


def _arguments(survey: Survey, region: Region, path: str) -> Mapping[str, Any]:
    """The non-tensor arguments of a module, which must be the same in all its calls."""
    calls = survey.calls(region, path)
    reason = next((call.reason for call in calls if call.reason is not None), None)
    if reason is not None:
        raise TraceFailure(reason)
    if any(call.concrete != calls[0].concrete for call in calls):
        raise TraceFailure(f"it is called {len(calls)} times, with different arguments that are not tensors")
    return calls[0].concrete


def first_difference(a: nn.Module, b: nn.Module, examples: tuple[Any, ...], *, training: bool, seed: int = 0) -> str | None:
    """Where two networks that should be one part, bit for bit; ``None`` where they do not.

    Both run once on ``examples`` with the same random numbers. Outputs are compared, then the state the run left behind (batch-norm
    statistics) and, in training mode, the gradient of every parameter for the sum of squared outputs.

    Args:
        a: a network; its mode is changed, its gradients are dropped, and in training mode its statistics move.
        b: another, likewise.
        examples: the positional arguments they are called with.
        training: run in training mode, with gradients; else in eval mode without.
        seed: of dropout and stochastic depth.
    """
    outputs, states, gradients = zip(*(_run(network, examples, training, seed) for network in (a, b)), strict=True)
    for what, (mine, other) in (("output", outputs), ("state", states), ("gradient of", gradients)):
        different = _difference(mine, other)
        if different is not None:
            return f"{what} {different}".strip()
    return None


def _run(network: nn.Module, examples: tuple[Any, ...], training: bool, seed: int) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    network.train(training)
    network.zero_grad(set_to_none=True)
    gradients: dict[str, Tensor] = {}
    drawn = random.getstate()
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
        torch.manual_seed(seed)
        random.seed(seed)
        output = network(*examples)
        if training:
            loss = torch.stack([tensor.float().square().mean() for tensor in tensors_in(output) if tensor.is_floating_point()]).sum()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    random.setstate(drawn)
    network.zero_grad(set_to_none=True)
    return output, network.state_dict(), gradients


def _difference(a: Any, b: Any, at: str = "") -> str | None:
    """Where two nested values differ; ``nan`` equals ``nan``."""
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and _equal(a, b)
        return None if same else at or "differs"
    if type(a) is not type(b):
        return at or "differs"
    if isinstance(a, Mapping):
        if list(a) != list(b):
            return at or "differs"
        return _first(lambda key: _difference(a[key], b[key], f"{at}.{key}" if at else str(key)), a)
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return at or "differs"
        return _first(lambda index: _difference(a[index], b[index], f"{at}[{index}]"), range(len(a)))
    return None if a == b else at or "differs"


def _first(difference: Callable[[Any], str | None], keys: Any) -> str | None:
    return next((found for key in keys if (found := difference(key)) is not None), None)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    )
