"""From tensors to a network that computes: built without numbers, then given the file's own tensors instead of copies of them.

The network is built on the meta device and the tensors are assigned into it, so no weight exists twice. Where that would leave
anything on the meta device (tables of positions that no file contains), or the network does not build there, it is built on the
CPU without drawing random numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.reading.builders import build

Prepare = Callable[[nn.Module], nn.Module]


def build_with_tensors(architecture: Architecture, tensors: Mapping[str, Tensor], *, prepare: Prepare | None = None) -> nn.Module:
    """The network with these tensors as its parameters and buffers, in eval mode.

    Args:
        architecture: what to build.
        tensors: model key -> tensor. They are assigned, not copied: dtype, memory format and sharing stay. Counters
            ``num_batches_tracked`` may be missing (files older than them); a tied weight may be there once only.
        prepare: applied to the network before the tensors are assigned; whoever replays edits on the skeleton does it here.

    Raises:
        InputError: names or shapes do not fit.
    """
    model = _prepared(build(architecture), prepare)
    _assign(model, tensors, architecture)
    if next(tensors_left_on_meta(model), None) is not None:
        model = _prepared(build(architecture, device="cpu", initialise=False), prepare)
        _assign(model, tensors, architecture)
    return model.eval()


def tensors_left_on_meta(model: nn.Module) -> Iterator[str]:
    """Paths of parameters, buffers and plain attributes (also within lists and dictionaries) that have shapes and no numbers."""
    for path, module in model.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items(), *vars(module).items()]:
            if name not in ("_parameters", "_buffers", "_modules") and _holds_meta(value):
                yield f"{path}.{name}" if path else name


def _holds_meta(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_meta
    if isinstance(value, Mapping):
        return any(_holds_meta(item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_meta(item) for item in value)
    return False


def _prepared(model: nn.Module, prepare: Prepare | None) -> nn.Module:
    return model if prepare is None else prepare(model)


def _assign(model: nn.Module, tensors: Mapping[str, Tensor], architecture: Architecture) -> None:
    expected = model.state_dict()
    ties = tied_names(model)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, slot in expected.items():
        if name in tensors:
            state[name] = tensors[name]
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(slot.shape, dtype=slot.dtype)
        else:
            twin = next((other for other in ties.get(name, ()) if other in tensors), None)
            if twin is not None:
                state[name] = tensors[twin]
    _refuse_misfits(expected, state, tensors, architecture)
    # Some modules (MNASNet) read their version from here, and refuse a state dict without one.
    state._metadata = getattr(expected, "_metadata", None)  # type: ignore[attr-defined]
    persistent = set(expected)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"The tensors do not fit {architecture}: {error}",
            where=str(architecture),
            not_done="the network was not loaded, nothing was written",
            to_do="name the right architecture with --arch",
        ) from error
    _tie_again(model, ties)
    _follow_dtype(model, state, persistent)


def _refuse_misfits(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], architecture: Architecture
) -> None:
    told = [f"{name} is missing" for name in expected if name not in state]
    told += [f"{name} is not known to it" for name in tensors if name not in expected]
    for name, tensor in state.items():
        slot = expected[name]
        if tensor.shape != slot.shape:
            told.append(f"{name} is {list(tensor.shape)} and should be {list(slot.shape)}")
        elif slot.is_floating_point() and not tensor.is_floating_point():
            told.append(f"{name} holds {str(tensor.dtype).removeprefix('torch.')} and should hold floating point")
    if told:
        more = f" (and {len(told) - 4} more)" if len(told) > 4 else ""
        raise InputError(
            f"The tensors do not fit {architecture}: {'; '.join(told[:4])}{more}.",
            where=str(architecture),
            not_done="the network was not loaded, nothing was written",
            to_do="name the right architecture with --arch",
        )


def tied_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every state-dict key whose tensor the builder uses under several names: those names, in order."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_tensor.setdefault(id(tensor), []).append(name)
    return {name: tuple(names) for names in by_tensor.values() if len(names) > 1 for name in names}


def _tie_again(model: nn.Module, ties: Mapping[str, tuple[str, ...]]) -> None:
    """Assigning gives every name a parameter of its own; those that the builder, or the file, had as one become one again."""
    groups: dict[Any, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter.numel() == 0:
                continue
            key = f"{path}.{name}" if path else name
            tie: Any = ties.get(key)
            if tie is None:
                tie = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype, parameter.device)
                if parameter.is_meta:
                    continue
            first = groups.setdefault(tie, parameter)
            if first is not parameter:
                module._parameters[name] = first


def _follow_dtype(model: nn.Module, state: Mapping[str, Tensor], persistent: set[str]) -> None:
    """Where the file is all of one half-precision dtype, buffers that it does not contain follow, as with ``model.half()``.

    The buffers of recipes' layers do not count: averages may be kept more precisely than the network.
    """
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, RecipeLayer)]
    averages = {f"{path}.{name}" for path, layer in layers for name, _ in layer.named_buffers()}
    dtypes = {tensor.dtype for name, tensor in state.items() if tensor.is_floating_point() and name not in averages}
    if len(dtypes) != 1 or not dtypes & {torch.float16, torch.bfloat16}:
        return
    (dtype,) = dtypes
    for path, module in model.named_modules():
        for name, buffer in list(module._buffers.items()):
            key = f"{path}.{name}" if path else name
            if buffer is not None and key not in persistent and buffer.is_floating_point() and not buffer.is_meta:
                module._buffers[name] = buffer.to(dtype)
