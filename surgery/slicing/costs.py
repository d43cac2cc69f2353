"""What a network costs at any widths, from what it costs now: the layers that change are counted anew, the rest is as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from chansurg.surgery.counting import count
from chansurg.surgery.forwards.skeleton import meta_copy
from chansurg.surgery.gating import Gate
from chansurg.surgery.slicing.facts import Layer
from chansurg.surgery.slicing.formulas import Ints
from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.kinds import module_of, path_of, shape_of, tensor_inputs


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates and memory access, as :func:`chansurg.count` counts them."""

    params: int
    macs: int
    memory_access: int


class Costs:
    """The costs of one surveyed network.

    Args:
        survey: of the network.
        layers: those whose widths may change.
    """

    def __init__(self, survey: Survey, layers: Sequence[Layer]) -> None:
        whole = count(survey.network, survey.input_size)
        self._modules = dict(survey.network.named_modules())
        self._layers = {layer.path: layer for layer in layers}
        shapes = _shapes_at_gates(survey)
        self._gates = {path: _of_gate(self._modules[path], *shapes[path]) for path in self._layers if path in shapes}
        self._rest = np.array([whole.params, whole.macs, whole.memory_access], dtype=np.int64)
        for path, layer in self._layers.items():
            self._rest -= self._figures(path, None if layer.inputs is None else np.arange(len(layer.inputs)), np.arange(len(layer.outputs)))

    def of(self, kept: Mapping[str, tuple[Ints | None, Ints]]) -> Cost:
        """The cost where each layer keeps these input and output channels, by index."""
        total = self._rest.copy()
        for path, (inputs, outputs) in kept.items():
            total += self._figures(path, inputs, outputs)
        params, macs, memory_access = total.tolist()
        return Cost(params, macs, memory_access)

    def _figures(self, path: str, inputs: Ints | None, outputs: Ints) -> Ints:
        """Parameters, multiply-accumulates and memory access of one layer."""
        module, width = self._modules[path], len(outputs)
        if path in self._gates:
            read, entries = 0 if inputs is None else len(inputs), width // int(module.unit)
            result: Ints = self._gates[path] @ np.array([1, read, entries, read * entries], dtype=np.int64)
            return result
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        offsets = width if isinstance(bias, nn.Parameter) else 0
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            return np.array([offsets + (width if isinstance(weight, nn.Parameter) else 0), 0, 0], dtype=np.int64)
        assert isinstance(weight, Tensor)
        groups = getattr(module, "groups", 1)
        if groups > 1:
            groups = len(np.unique(outputs // (len(self._layers[path].outputs) // groups)))
        row = 1 if inputs is None else len(inputs) // groups  # input channels that a filter spans
        kernel = width * row * weight[0, 0].numel()
        positions = self._layers[path].positions
        return np.array([kernel + offsets, positions * kernel, kernel + positions * width], dtype=np.int64)


def _shapes_at_gates(survey: Survey) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each gate the shapes of its features and of its source, for one image."""
    found = {}
    for region in survey.regions:
        for node in region.nodes:
            if isinstance(module_of(node), Gate):
                features, source = (shape_of(tensor) for tensor in tensor_inputs(node)[:2])
                if features is not None and source is not None:
                    found[path_of(node)] = (features, source)
    return found


class _Alone(nn.Module):
    """A gate by itself, on tensors of shapes that it is given; the network's input is passed by."""

    def __init__(self, gate: nn.Module, features: Sequence[int], source: Sequence[int]) -> None:
        super().__init__()
        self.gate = gate
        self.shapes = (tuple(features), tuple(source))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.gate(*(torch.empty(shape, device=x.device, dtype=x.dtype) for shape in self.shapes))
        return result


def _of_gate(gate: nn.Module, features: tuple[int, ...], source: tuple[int, ...]) -> Ints:
    """The figures of a gate as ``[3, 4]`` factors of 1, its source's channels, its entries, and the product of both.

    A gate computes with matrices from its source to its entries, so a few narrow copies tell all others.
    """
    assert isinstance(gate, Gate)
    dim, unit = gate.channel_dim, gate.unit
    read, entries = source[dim], features[dim] // unit

    def counted(inputs: int, outputs: int) -> Ints:
        alone = meta_copy(gate)
        assert isinstance(alone, Gate)
        shapes = [list(features), list(source)]
        shapes[0][dim], shapes[1][dim] = outputs * unit, inputs
        if (inputs, outputs) != (read, entries):
            alone.narrow(range(inputs), range(outputs * unit))
        figures = count(_Alone(alone, *shapes), (1, 1, 1))
        return np.array([figures.params, figures.macs, figures.memory_access], dtype=np.int64)

    fewer_in, fewer = max(1, read - 1), max(1, entries - 1)
    if gate.reason_against_narrowing(range(fewer_in), range(fewer * unit)) is not None:
        fewer_in, fewer = read, entries
    whole, narrow_in, narrow, both = counted(read, entries), counted(fewer_in, entries), counted(read, fewer), counted(fewer_in, fewer)
    product = whole - narrow_in - narrow + both
    by_in, by_entry = whole - narrow_in - product * entries, whole - narrow - product * read
    return np.stack([whole - by_in * read - by_entry * entries - product * read * entries, by_in, by_entry, product], axis=1)
