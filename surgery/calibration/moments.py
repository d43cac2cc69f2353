"""Second moments of what goes into a layer, together with what is wanted from it: all that least squares need.

A convolution is a linear layer on patches. Neighbouring patches hardly differ, so of each map only some positions are taken, drawn by a
seed. No activation is kept: memory does not depend on how many images there are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Linear = nn.Conv2d | nn.Linear


class Moments:
    """Sums over samples of a layer's inputs ``x`` and targets ``t``, each group of a grouped convolution by itself.

    Args:
        groups: ``G``.
        columns: ``D``, inputs of one output: ``C_in / G`` times the positions of the kernel.
        outputs: ``K`` of each group.

    Attributes:
        inputs: ``[G, D + 1, D + 1]``, float64: the sum of ``(x, 1)`` times itself.
        responses: ``[G, D + 1, K]``, float64: the sum of ``(x, 1)`` times ``t``.
        squares: ``[G, K]``, float64: the sum of ``t * t``.
        count: how many samples there were.
    """

    def __init__(self, groups: int, columns: int, outputs: int) -> None:
        self.inputs = torch.zeros(groups, columns + 1, columns + 1, dtype=torch.float64)
        self.responses = torch.zeros(groups, columns + 1, outputs, dtype=torch.float64)
        self.squares = torch.zeros(groups, outputs, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, t: Tensor) -> None:
        """Take in samples ``x`` ``[N, G, D]`` and ``t`` ``[N, G, K]``."""
        x, t = x.float().transpose(0, 1), t.float().transpose(0, 1)
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
        # One batch is short enough for single precision; the sums over all are not.
        self.inputs += (x.mT @ x).double().cpu()
        self.responses += (x.mT @ t).double().cpu()
        self.squares += t.double().square().sum(1).cpu()
        self.count += x.shape[1]

    def mean_square_error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of ``x @ weight.T + bias`` against ``t``, by output: ``[G, K, D], [G, K] -> [G, K]``."""
        full = torch.cat([weight, bias.unsqueeze(2)], 2)
        quadratic = ((full @ self.inputs) * full).sum(2)
        return ((quadratic - 2 * (full * self.responses.mT).sum(2) + self.squares) / self.count).clamp_min(0)

    def spread(self) -> Tensor:
        """The variance of ``t``, by output: ``[G, K]``."""
        mean = self.responses[:, -1] / self.count
        return (self.squares / self.count - mean.square()).clamp_min(0)

    def of_outputs(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``x @ weight.T``: ``[G, K, D] -> [G, K]`` each."""
        products, sums = self.inputs[:, :-1, :-1] / self.count, self.inputs[:, :-1, -1:] / self.count
        mean = (weight @ sums).squeeze(2)
        return mean, (((weight @ products) * weight).sum(2) - mean.square()).clamp_min(0)


def shape_of_layer(layer: Linear) -> tuple[int, int, int]:
    """``G``, ``D`` and ``K`` as :class:`Moments` calls them."""
    if isinstance(layer, nn.Linear):
        return 1, layer.in_features, layer.out_features
    return layer.groups, layer.weight[0].numel(), layer.out_channels // layer.groups


def samples(layer: Linear, x: Tensor, t: Tensor, positions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a layer at some positions of every image.

    Args:
        layer: what reads ``x``.
        x: ``[B, C, H, W]``, or for a linear layer ``[B, …, C]``.
        t: ``[B, K, H', W']``, or ``[B, …, K]``: what the layer is to put out.
        positions: how many of an image, at most.
        generator: draws them; all images of a batch give the same ones.

    Returns:
        ``[N, G, D]`` and ``[N, G, K]``.
    """
    groups, _, outputs = shape_of_layer(layer)
    if isinstance(layer, nn.Linear):
        x, t = (value.reshape(value.shape[0], -1, value.shape[-1]) for value in (x, t))
        chosen = _drawn(x.shape[1], positions, generator, x.device)
        return x[:, chosen].reshape(-1, 1, x.shape[2]), t[:, chosen].reshape(-1, 1, outputs)
    height, width = t.shape[2:]
    chosen = _drawn(height * width, positions, generator, x.device)
    row, column = chosen // width, chosen % width
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    down, right = (torch.arange(layer.kernel_size[axis], device=x.device) * layer.dilation[axis] for axis in (0, 1))
    rows = (row * layer.stride[0])[:, None, None] + down[:, None]
    columns = (column * layer.stride[1])[:, None, None] + right
    patches = padded[:, :, rows, columns].transpose(1, 2)  # [B, P, C, kernel, kernel]
    return patches.reshape(x.shape[0] * len(chosen), groups, -1), t[:, :, row, column].transpose(1, 2).reshape(-1, groups, outputs)


def _drawn(total: int, positions: int, generator: torch.Generator, device: torch.device) -> Tensor:
    if total <= positions:
        return torch.arange(total, device=device)
    return torch.randperm(total, generator=generator)[:positions].sort().values.to(device)
