"""Which of a network's tensors depend on the number of classes, and how: learnt by building it with two numbers of classes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.names import COUNTER, Shape

Rule = tuple[int, int, int]
"""Dimension, factor, offset: the size of that dimension is ``factor * num_classes + offset``."""
Head = dict[str, list[Rule]]
"""Name of a tensor -> its rules."""

# No width in any network is a small multiple of these by accident.
_FEW, _MORE = 7, 11


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """State-dict name -> shape, without batch norm's counters."""
    state = model.state_dict(keep_vars=True)
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith(COUNTER)}


def with_classes(architecture: Architecture, num_classes: int) -> Architecture:
    """The same architecture with that many classes."""
    return Architecture(architecture.source, architecture.name, {**architecture.kwargs, "num_classes": num_classes})


def learn_head(architecture: Architecture) -> tuple[Head, nn.Module] | None:
    """The tensors that depend on the number of classes, and the network with seven classes, on the meta device.

    ``None`` where the builder takes no ``num_classes``, or where it changes which tensors there are.
    """
    try:
        model, larger = (build(with_classes(architecture, n)) for n in (_FEW, _MORE))
    except InputError:
        return None
    few, more = shapes_of(model), shapes_of(larger)
    if few.keys() != more.keys():
        return None
    head: Head = {}
    for name, shape in few.items():
        if shape == more[name]:
            continue
        if len(shape) != len(more[name]):
            return None
        for dim, (a, b) in enumerate(zip(shape, more[name], strict=True)):
            if a != b:
                factor = (b - a) // (_MORE - _FEW)
                head.setdefault(name, []).append((dim, factor, a - factor * _FEW))
    return head, model


def classes_in(head: Mapping[str, list[Rule]], shapes: Mapping[str, Shape]) -> int | None:
    """The number of classes that these shapes say, or ``None`` if they agree on none."""
    found: set[int] = set()
    for name, rules in head.items():
        shape = shapes.get(name)
        if shape is None:
            return None
        for dim, factor, offset in rules:
            if dim >= len(shape) or factor == 0 or (shape[dim] - offset) % factor:
                return None
            found.add((shape[dim] - offset) // factor)
    if len(found) != 1:
        return None
    (classes,) = found
    return classes if classes > 0 else None
