"""What goes into each layer of a network, as second moments: enough to choose channels by least squares without keeping activations.

One pass over images with hooks. For a layer whose input has ``C`` channels two matrices are kept: how its channels vary together
(``[C, C]``), and, for a convolution, how the positions under its kernel do (``[P, P]``). Their Kronecker product stands for the moments
of whole patches, ``[C P, C P]``, which would not fit a wide layer: what channels share is taken to fade with distance alike in all.

Source of the factorisation: Grosse, Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", ICML 2016,
Section 3.1 (its assumption of spatial homogeneity).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.surgery.errors import InputError
from chansurg.surgery.forwards.tracing import unchanged
from chansurg.surgery.modes import eval_mode

POSITIONS = 16
"""How many positions of each image a layer's moments are taken from; neighbours hardly differ, images do."""


@dataclass(frozen=True)
class LayerStatistics:
    """Of the input of one layer, over images and positions.

    Args:
        samples: how many positions of all images were looked at.
        mean: ``[C]``, float64.
        covariance: ``[C, C]``, float64: the second moments about the mean.
        overlap: ``[P, P]``, float64: how the ``P`` positions under a kernel (row by row) vary together, summed over the channels and scaled
            so that the diagonal's mean is one; ``[1, 1]`` of a linear layer.
    """

    samples: int
    mean: Tensor
    covariance: Tensor
    overlap: Tensor


@dataclass(frozen=True)
class Statistics:
    """Of a network's layers.

    Args:
        images: how many were looked at.
        layers: by path; of every two-dimensional convolution and linear layer that ran.
    """

    images: int
    layers: Mapping[str, LayerStatistics]


class _Sums:
    """Sums over what has gone into one layer so far; its moments in the end."""

    def __init__(self) -> None:
        self.samples = 0
        self._rows = 0
        self._sum = self._products = self._overlaps = torch.zeros((), dtype=torch.float64)

    def add(self, patches: Tensor) -> None:
        """Take in patches ``[N, P, C]``."""
        # One batch is short enough for the network's own precision; the sums over all are not.
        patches = patches if patches.dtype == torch.float64 else patches.float()
        rows = patches.flatten(0, 1)
        self.samples += patches.shape[0]
        self._rows += rows.shape[0]
        self._sum = self._sum + rows.sum(0, dtype=torch.float64).cpu()
        self._products = self._products + (rows.T @ rows).double().cpu()
        by_position = patches.transpose(0, 1).flatten(1)
        self._overlaps = self._overlaps + (by_position @ by_position.T).double().cpu()

    def moments(self) -> LayerStatistics:
        """About the mean."""
        mean = self._sum / self._rows
        overlap = self._overlaps / self.samples - mean.square().sum()
        scale = overlap.diagonal().mean()
        unscaled = torch.eye(len(overlap), dtype=torch.float64)
        covariance = self._products / self._rows - torch.outer(mean, mean)
        return LayerStatistics(self.samples, mean, covariance, overlap / scale if scale > 0 else unscaled)


def measure(network: nn.Module, images: Iterable[Tensor], *, positions: int = POSITIONS, seed: int = 0) -> Statistics:
    """Run a network over images in eval mode, and take the moments of what goes into its layers.

    Args:
        network: on any device; it is not changed.
        images: batches ``[B, C, H, W]``, preprocessed as the network wants them. Sums are taken in their order: the same batches give the
            same bits.
        positions: how many positions of each image are drawn for a layer, at most.
        seed: draws them.

    Raises:
        InputError: where there is no image.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, _Sums] = {}
    place = next(network.parameters(), None)
    handles = [
        module.register_forward_pre_hook(partial(_see, sums, path, positions, generator))
        for path, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    count = 0
    try:
        with unchanged(network), eval_mode(network), torch.no_grad():
            for batch in images:
                network(batch if place is None else batch.to(place))
                count += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError(
            "There is no image to take statistics from.",
            where="calibration data",
            not_done="Nothing was measured.",
            to_do="Pass batches [B, C, H, W] of at least one image.",
        )
    return Statistics(count, {path: found.moments() for path, found in sums.items() if found.samples})


def _see(sums: dict[str, _Sums], path: str, positions: int, generator: torch.Generator, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor):
        return
    if isinstance(layer, nn.Conv2d):
        if x.ndim == 4:
            sums.setdefault(path, _Sums()).add(_patches(layer, x, positions, generator))
    elif x.ndim >= 2:
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        at = _drawn(tokens.shape[0], tokens.shape[1], positions, generator)
        chosen = tokens[torch.arange(len(tokens)).unsqueeze(1).to(x.device), at.to(x.device)]
        sums.setdefault(path, _Sums()).add(chosen.reshape(-1, 1, x.shape[-1]))


def _patches(conv: nn.Conv2d, x: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    """What the kernel sees at drawn positions: ``[B, C, H, W] -> [B n, P, C]``."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    height, width = ((full - span) // stride + 1 for full, span, stride in zip(padded.shape[2:], spans, conv.stride, strict=True))
    at = _drawn(len(x), height * width, positions, generator).flatten().to(x.device)
    image = torch.arange(len(x), device=x.device).repeat_interleave(len(at) // max(len(x), 1))
    corner = (at // width * conv.stride[0], at % width * conv.stride[1])
    rows, columns = (
        first.unsqueeze(1) + torch.arange(size, device=x.device) * dilation
        for first, size, dilation in zip(corner, conv.kernel_size, conv.dilation, strict=True)
    )
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].flatten(1, 2)


def _drawn(images: int, places: int, positions: int, generator: torch.Generator) -> Tensor:
    """For each image some of its places, each once: int64 ``[B, n]``."""
    if places <= positions:
        return torch.arange(places).expand(images, -1)
    return torch.rand(images, places, generator=generator).topk(positions, dim=1, sorted=False).indices.sort(dim=1).values
