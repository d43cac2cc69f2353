"""Closed forms: every layer of a segment solved in turn, for what the original makes of the same images.

Each layer is solved with the converted network's own activations as they are by then, so that a layer makes up for the errors of those
before it. The batch norm behind a layer takes the solution's scale and shift, and the statistics of what it will see.

Sources: the reconstruction of He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, Section 3.1, with
the asymmetric input of Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016, Section
3.3, and the residual target of the former's Section 3.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from chansurg.surgery.calibration.moments import Linear, Moments, samples, shape_of_layer
from chansurg.surgery.calibration.norms import norms_in, reestimate
from chansurg.surgery.calibration.playing import Carried, Player, select
from chansurg.surgery.calibration.segments import Segment
from chansurg.surgery.calibration.solving import Solution, solve
from chansurg.surgery.calibration.units import Unit
from chansurg.surgery.survey.kinds import shape_of

ROWS_A_COLUMN = 8
LEAST_ROWS = 32_768
"""Samples that a layer is solved with: at least so many where there are that many, and so many for each of its inputs."""

LEAST_FACTOR, LEAST_SHARE = 1e-4, 1e-2
"""A channel that is multiplied by less than the one, or than this share of the largest factor, keeps its weights: others would be huge."""


class Reconstruction:
    """Solves the layers of one segment.

    Args:
        networks: the original, and the converted network.
        players: of the original, and of the converted network.
        segment: the segment.
        fitted: images to fit on, carried to the segment's beginning.
        held_out: images to judge by, likewise.
        seed: draws positions.
    """

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        players: tuple[Player, Player],
        segment: Segment,
        fitted: Carried,
        held_out: Carried,
        seed: int,
    ) -> None:
        self._original, self._network = networks
        self._players = players
        self._segment = segment
        self._carried = fitted, held_out
        self._seed = seed

    def fit(self, unit: Unit) -> bool:
        """Solve one unit's layers; whether anything was changed."""
        factor = self._factor(unit)
        if factor is None:
            return False
        inside = norms_in([self._network.get_submodule(unit.path)])
        if inside:
            reestimate(inside, lambda: self._play(unit))
        fitted, held_out = (self._moments(unit, carried) for carried in self._carried)
        start, changed, spreads, means, scales = 0, False, [], [], []
        solutions: list[Solution] = []
        for layer, own, other in zip(unit.layers, fitted, held_out, strict=True):
            groups, columns, outputs = shape_of_layer(layer)
            width = groups * outputs
            weight, bias = _present(layer, unit.norm, start, start + width)
            weight, bias = weight.reshape(groups, outputs, columns).cpu(), bias.reshape(groups, outputs).cpu()
            scale = factor[start : start + width].view(groups, outputs)
            intercept = unit.norm is not None or layer.bias is not None
            found = solve(own, other, weight * scale.unsqueeze(2), bias * scale, intercept=intercept)
            counts = scale.abs() > max(LEAST_FACTOR, LEAST_SHARE * float(factor.abs().max()))
            weight = torch.where(counts.unsqueeze(2), found.weight / scale.unsqueeze(2), weight)
            solutions.append(replace(found, weight=weight, bias=torch.where(counts, found.bias / scale, bias)))
            start += width
            changed |= found.ridge is not None
        if not changed:
            return False
        for layer, own, found in zip(unit.layers, fitted, solutions, strict=True):
            scale = _write(layer, found, self._length(unit.path, layer) if unit.norm is not None else None)
            mean, variance = own.of_outputs(found.weight)
            means.append((mean * scale).flatten())
            spreads.append((variance * scale.square()).flatten())
            scales.append(scale.flatten())
        if unit.norm is not None:
            shift = torch.cat([found.bias.flatten() for found in solutions])
            _write_norm(unit.norm, torch.cat(means), torch.cat(spreads), torch.cat(scales), shift)
        return True

    def _factor(self, unit: Unit) -> Tensor | None:
        """What the unit's output channels are multiplied by before they count: ``[K]``."""
        width = sum(layer.weight.shape[0] for layer in unit.layers)
        shape = shape_of(unit.node)
        if unit.closing is None or shape is None:
            return torch.ones(width, dtype=torch.float64)
        axis = len(shape) - 1 if isinstance(unit.layers[0], nn.Linear) else 1
        return unit.closing.factor(self._players[1].constant, width, len(shape), axis)

    def _length(self, path: str, layer: Linear) -> Tensor:
        """The length that filters behind a norm shall have, ``[K]``: that of the original's filters there, which training arrived at.

        A norm undoes the length, and the shorter filters are, the further a step of training turns them: slices of filters left as short
        as they are lose in a few steps what was fitted (van Laarhoven, "L2 Regularization versus Batch and Weight Normalization").
        """
        own: Tensor = layer.weight.detach().double().cpu().flatten(1).norm(dim=1)
        try:
            there = self._original.get_submodule(path)
        except AttributeError:
            return own
        if not isinstance(there, Linear):
            return own
        lengths: Tensor = there.weight.detach().double().cpu().flatten(1).norm(dim=1)
        return lengths.median().expand(len(own)) if bool(lengths.any()) else own

    def _play(self, unit: Unit) -> None:
        for x in self._carried[0].telling():
            self._players[1].run(self._segment.converted, x, until=unit.node)

    def _moments(self, unit: Unit, carried: Carried) -> list[Moments]:
        """Of each of the unit's layers, with its part of the target."""
        found = [Moments(*shape_of_layer(layer)) for layer in unit.layers]
        rows = max(LEAST_ROWS, ROWS_A_COLUMN * max(shape_of_layer(layer)[1] for layer in unit.layers))
        batches = carried.solving()
        positions = max(1, -(-rows // max(1, sum(len(ours) for _, ours in batches))))
        generator = torch.Generator().manual_seed(self._seed)
        for theirs, ours in batches:
            wanted = self._players[0].run(self._segment.original, theirs, (unit.target,), unit.target)[unit.target]
            wanted = select(wanted, unit.channels, unit.axis)
            keep = () if unit.closing is None else (unit.closing.other,)
            with _watched(unit.layers) as inputs:
                there = self._players[1].run(self._segment.converted, ours, keep, unit.until)
            if unit.closing is not None:
                wanted = unit.closing.moved_back(wanted - there[unit.closing.other])
            start = 0
            for layer, moments, x in zip(unit.layers, found, inputs, strict=True):
                width = layer.weight.shape[0]
                axis = wanted.ndim - 1 if isinstance(layer, nn.Linear) else 1
                moments.add(*samples(layer, x, wanted.narrow(axis, start, width), positions, generator))
                start += width
        return found


@contextmanager
def _watched(layers: tuple[Linear, ...]) -> Iterator[list[Tensor]]:
    """A list that holds what goes into the layers, once they have run."""
    inputs: list[Tensor] = [torch.empty(0)] * len(layers)

    def note(number: int, x: Tensor) -> None:
        inputs[number] = x.clone()

    handles = [layer.register_forward_pre_hook(lambda _, args, at=number: note(at, args[0])) for number, layer in enumerate(layers)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _present(layer: Linear, norm: nn.modules.batchnorm._BatchNorm | None, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Weight ``[K, D]`` and bias ``[K]`` of a layer and its part of the norm behind it, as one layer."""
    weight = layer.weight.detach().double().flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    part = slice(start, stop)
    factor = norm.weight.detach()[part].double() / (norm.running_var[part].double() + norm.eps).sqrt()
    return weight * factor[:, None], (bias - norm.running_mean[part].double()) * factor + norm.bias.detach()[part].double()


@torch.no_grad()
def _write(layer: Linear, found: Solution, lengths: Tensor | None) -> Tensor:
    """Give a layer its solution; what its outputs were multiplied by: ``[G, K]``.

    With a norm behind it every filter gets one of the ``lengths`` ``[K]``, and the norm takes the factor and the bias.
    """
    weight = found.weight
    scale = weight.new_ones(weight.shape[:2])
    if lengths is not None:
        length, wanted = weight.norm(dim=2), lengths.to(weight.dtype).view(weight.shape[:2])
        scale = torch.where((length > 0) & (wanted > 0), wanted / length, 1.0)
    layer.weight.copy_((weight * scale.unsqueeze(2)).reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if lengths is not None else found.bias.flatten())
    return scale


@torch.no_grad()
def _write_norm(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor) -> None:
    """Make a norm with these statistics give ``x / scale + shift``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt() / scale)
    norm.bias.copy_(mean / scale + shift)
