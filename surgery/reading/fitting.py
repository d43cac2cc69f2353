"""Whether a checkpoint's tensors are those of one given architecture, and with how many classes; else, what differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import build, variants
from chansurg.surgery.reading.heads import classes_in, learn_head, shapes_of, with_classes
from chansurg.surgery.reading.names import COUNTER, Shape, View, views
from chansurg.surgery.reading.weights import tied_names


@dataclass(frozen=True)
class Fit:
    """How a checkpoint's tensors compare with a network's.

    Args:
        architecture: with the keyword arguments that suit the tensors best.
        view: the reading of the checkpoint that suits the network best.
        names: checkpoint key -> model key, of every tensor that the network has.
        differences: each one sentence; empty if it fits.
        beside: keys of the checkpoint that are no part of the network.
    """

    architecture: Architecture
    view: View
    names: Mapping[str, str]
    differences: tuple[str, ...]
    beside: tuple[str, ...]


def fit(architecture: Architecture, shapes: Mapping[str, Shape]) -> Fit:
    """Compare, trying auxiliary heads, the number of classes, input channels and image size that the tensors suggest.

    Raises:
        InputError: the architecture cannot be built.
    """
    best: Fit | None = None
    for variant in variants(architecture):
        model = build(variant)
        view = _best_view(model, shapes)
        found = compare(variant, model, view, shapes)
        for suggested in _suggestions(variant, model, view, shapes) if found.differences else ():
            try:
                model = build(suggested)
            except InputError:
                continue
            other = compare(suggested, model, view, shapes)
            if len(other.differences) < len(found.differences):
                found = other
        if best is None or (len(found.differences), len(found.beside)) < (len(best.differences), len(best.beside)):
            best = found
    if best is None:
        raise AssertionError("an architecture is one of its own variants")
    return best


def compare(architecture: Architecture, model: nn.Module, view: View, shapes: Mapping[str, Shape]) -> Fit:
    """One reading of the checkpoint against one network."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name.partition(".")[0] for name in expected} | {name for name, _ in model.named_children()}
    ties = tied_names(model)
    differences: list[str] = []
    for name, shape in expected.items():
        if name in view.keys:
            found = shapes[view.keys[name]]
            if found != shape:
                differences.append(f"{view.keys[name]} is {_told(found)}, {architecture} has {_told(shape)}")
        elif not name.endswith(COUNTER) and not any(twin in view.keys for twin in ties.get(name, ())):
            differences.append(f"{name} is missing")
    for name, key in view.keys.items():
        if name not in expected and name.partition(".")[0] in own and not name.endswith(COUNTER):
            differences.append(f"{key} is not known to {architecture}")
    names = {key: name for name, key in view.keys.items() if name in expected}
    return Fit(architecture, view, names, tuple(differences), tuple(key for key in shapes if key not in names))


def _told(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _best_view(model: nn.Module, shapes: Mapping[str, Shape]) -> View:
    own = shapes_of(model)
    found = [view for level in views(shapes) for view in level]
    return max(found, key=lambda view: (len(own.keys() & view.keys.keys()), -len(view.keys))) if found else View({})


def _suggestions(architecture: Architecture, model: nn.Module, view: View, shapes: Mapping[str, Shape]) -> Iterator[Architecture]:
    """Keyword arguments under which the network might fit; each keeps what the one before it found."""
    given = view.shapes(shapes)
    learnt = learn_head(architecture)
    if learnt is not None:
        classes = classes_in(learnt[0], given)
        if classes is None and architecture.source == "timm" and not any(name in given for name in learnt[0]):
            classes = 0
        if classes is not None:
            architecture = with_classes(architecture, classes)
            yield architecture
    own = shapes_of(model)
    for keyword, value in _other_arguments(architecture, own, given):
        architecture = Architecture(architecture.source, architecture.name, {**architecture.kwargs, keyword: value})
        yield architecture


def _other_arguments(architecture: Architecture, own: Mapping[str, Shape], given: Mapping[str, Shape]) -> Iterator[tuple[str, int]]:
    """Input channels from the first convolution, image size from a table of one vector per patch."""
    first = next((name for name, shape in own.items() if len(shape) == 4), None)
    if first is None or len(given.get(first, ())) != 4:
        return
    if architecture.source == "timm" and own[first][1] == 3 and given[first][1] != 3:
        yield "in_chans", given[first][1]
    keyword = {"timm": "img_size", "torchvision": "image_size"}.get(architecture.source)
    positions = next((name for name in ("pos_embed", "encoder.pos_embedding") if name in own and name in given), None)
    if keyword and positions and own[positions] != given[positions] and len(own[positions]) == len(given[positions]) == 3:
        tokens, wanted = own[positions][1], given[positions][1]
        extra = tokens - math.isqrt(tokens) ** 2
        side = math.isqrt(max(wanted - extra, 0))
        if side and side * side + extra == wanted:
            yield keyword, side * own[first][-1]
