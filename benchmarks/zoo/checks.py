"""What is tried with one network: surveyed, rewritten without an edit, converted by every recipe in each of its modes."""

from __future__ import annotations

import copy
import dataclasses
import gc
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from networks import SIDES, Network
from torch import nn

import chansurg
from chansurg.surgery.editing.identity import first_difference, rewrite_without_edits
from chansurg.surgery.errors import ChansurgError
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.nested import tensors_in
from chansurg.surgery.recipe import Recipe, find_recipe
from chansurg.surgery.survey import Survey, survey


def missing_recipes(result: Mapping[str, Any], recipes: Iterable[str]) -> list[str]:
    """Which of the recipes a result of :func:`check` says nothing of."""
    return [] if "failed" in result else [name for name in recipes if name not in result["recipes"]]


def check(network: Network, recipes: Sequence[str], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything the table says of one network, as JSON values.

    Args:
        network: what to check.
        recipes: names of those to try.
        known: an earlier result for it; only the recipes that it says nothing of are then tried, and the rest is taken from it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = chansurg.load(network.name)
    _unsettle(model)
    size = network.input_size(record_of(model).preprocessing.input_size)
    surveyed = survey(model, size)
    if known is None:
        known = _understood(network, model, surveyed)
    small = None if known["run_at"] is None else tuple(known["run_at"])
    tried = dict(known["recipes"])
    for name in missing_recipes(known, recipes):
        recipe = find_recipe(name)
        tried[name] = {mode: _convert(network, model, recipe, options, surveyed, small) for mode, options in _modes(recipe)}
    gc.collect()
    return {**known, "recipes": tried}


def _understood(network: Network, model: nn.Module, surveyed: Survey) -> dict[str, Any]:
    """How much of the network was traced, and whether it is the same when its forwards are rewritten without an edit."""
    size = tuple(surveyed.input_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result: dict[str, Any] = {
        "family": network.family,
        "stand_in": network.stand_in,
        "parameters": parameters,
        "input_size": list(size),
        "regions": [region.path for region in surveyed.regions],
        "untraced": dict(surveyed.untraced),
    }
    small = _small_size(network, model, size) if network.stand_in is None else None
    result["run_at"] = None if small is None else list(small)
    report = rewrite_without_edits(rewritten := copy.deepcopy(model), surveyed)
    result["rewritten"], result["left"] = len(report.rewritten), dict(report.left)
    if small is not None:
        result.update(_same(network, model, rewritten, small))
    return {**result, "recipes": {}}


def _unsettle(model: nn.Module) -> None:
    """Give statistics, scales and biases values that are not all alike, or much of what could go wrong would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=generator)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0, 0.05, generator=generator))


def _small_size(network: Network, model: nn.Module, size: tuple[int, ...]) -> tuple[int, ...]:
    """The smallest input that the network takes in both modes."""
    if network.family == "detection":
        return (size[0], 160, 160)
    skeleton = meta_copy(model)
    for side in SIDES:
        smaller = (*size[:-2], side, side)
        if side >= size[-1]:
            break
        try:
            for training in (True, False):
                examples = network.examples(skeleton.train(training), smaller)
                skeleton(*(example.to("meta") for example in examples))
        except Exception:
            continue
        return smaller
    return tuple(size)


def _same(network: Network, model: nn.Module, rewritten: nn.Module, size: tuple[int, ...]) -> dict[str, Any]:
    """``True``, or where the two differ, for each mode and for a deep copy of the rewritten network."""
    found: dict[str, Any] = {}
    original = network.prepare(copy.deepcopy(model))
    network.prepare(rewritten)
    for key, training, other in (("eval", False, rewritten), ("copy", False, copy.deepcopy(rewritten)), ("train", True, rewritten)):
        original.train(training)
        try:
            examples = network.examples(original, size)
            found[key] = first_difference(original, other, examples, training=training) or True
        except Exception as error:
            found[key] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return found


def _modes(recipe: Recipe) -> Iterator[tuple[str, dict[str, str]]]:
    """Each mode of a recipe with the options that choose it; a recipe without modes has one."""
    field = next((field for field in dataclasses.fields(recipe.Options) if field.name == "mode"), None)
    if field is None:
        yield "", {}
    else:
        yield from ((mode, {"mode": mode}) for mode in field.metadata["choices"])


def _convert(
    network: Network, model: nn.Module, recipe: Recipe, options: dict[str, str], surveyed: Survey, size: tuple[int, ...] | None
) -> dict[str, Any]:
    plan = recipe.plan(surveyed, recipe.options(options))
    result: dict[str, Any] = {
        "sites": dict(Counter(site.kind for site in plan.sites)),
        "paths": [site.path for site in plan.sites],
        "skipped": dict(Counter(skip.reason for skip in plan.skipped)),
        "skipped_paths": {skip.path: skip.reason for skip in plan.skipped},
    }
    if not plan.sites:
        return result
    try:
        converted = chansurg.apply(model, plan, input_size=tuple(surveyed.input_size))
        result["before"], result["after"] = (record_of(converted).journal[-1].before, record_of(converted).journal[-1].after)
        if size is not None:
            reloaded = _saved_and_loaded(converted)
            result["converted"] = _runs(network, model, network.prepare(converted), size)
            result["trained"] = _trains(network, converted, size)
            examples = network.examples(converted.eval(), size)
            result["reloaded"] = first_difference(converted, network.prepare(reloaded), examples, training=False) or True
    except ChansurgError as error:
        result["converted"] = error.what
    except Exception as error:
        result["converted"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return result


def _runs(network: Network, model: nn.Module, converted: nn.Module, size: tuple[int, ...]) -> bool | str:
    with torch.no_grad():
        examples = network.examples(converted.eval(), size)
        before, after = tensors_in(network.prepare(copy.deepcopy(model)).eval()(*examples)), tensors_in(converted(*examples))
    if network.family != "detection" and [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return "its outputs have other shapes"
    return all(bool(tensor.isfinite().all()) for tensor in after) or "its outputs are not finite"


def _trains(network: Network, converted: nn.Module, size: tuple[int, ...]) -> bool | str:
    trained = copy.deepcopy(converted).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)
    torch.manual_seed(0)
    outputs = tensors_in(trained(*network.examples(trained, size)))
    torch.stack([tensor.float().square().mean() for tensor in outputs if tensor.is_floating_point()]).sum().backward()
    for path, layer in trained.named_modules():
        if isinstance(layer, RecipeLayer):
            for name, parameter in layer.named_parameters():
                if parameter.grad is None:
                    return f"no gradient reaches {path}.{name}"
    if any(parameter.grad is not None and not parameter.grad.isfinite().all() for parameter in trained.parameters()):
        return "a gradient is not finite"
    optimizer.step()
    return True


def _saved_and_loaded(converted: nn.Module) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "converted.safetensors"
        chansurg.save(converted, file)
        return chansurg.load(file)
