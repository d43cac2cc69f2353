"""What readers make of channels, in two matrices: all that a choice of channels by least squares has to know.

A layer reads channels ``x`` ``[C]`` at every position. If it gets only some functions of them, ``B^T x`` with ``B`` ``[C, K]``, and its
weights are fitted anew, the part of its response that it can still give is ``trace((B^T S B)^-1 B^T D B)``: ``S`` is the covariance of the
channels, ``D`` their cross-covariance with the response times its transpose. Columns of the identity in ``B`` keep channels (channel
pruning by reconstruction: He, Zhang, Sun, ICCV 2017, Equation 1; Luo, Wu, Lin, "ThiNet", ICCV 2017, Equation 6), indicators of subsets
pool them, and weights fold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.chains import tail_of
from chansurg.surgery.survey.kinds import is_activation, is_pooled, path_of

RIDGE = 1e-4
"""Added to every variance, as a share of their mean: what hardly varies is told by chance."""


@dataclass(frozen=True)
class Demand:
    """What is read of ``C`` channels.

    Args:
        covariance: ``S``, ``[C, C]``, float64, positive definite.
        wanted: ``D``, ``[C, C]``, float64, positive semidefinite, scaled so that the whole response counts one for every reader.
    """

    covariance: Tensor
    wanted: Tensor

    def of(self, channels: Sequence[int]) -> Demand:
        """Of some of the channels, as if there were no others."""
        index = torch.tensor(list(channels), dtype=torch.long)
        return Demand(self.covariance[index][:, index], self.wanted[index][:, index])

    def given(self, functions: Tensor) -> Tensor:
        """The share of the response that functions ``B`` ``[C, K]`` of the channels still give: a scalar."""
        moments = functions.T @ self.covariance @ functions
        share: Tensor = torch.linalg.solve(moments, functions.T @ self.wanted @ functions).trace()
        return share

    @property
    def reading(self) -> Tensor:
        """How much each direction of the channels counts in the responses: ``S^-1 D S^-1``, ``[C, C]``."""
        inverse: Tensor = torch.linalg.inv(self.covariance)
        return inverse @ self.wanted @ inverse

    @property
    def worth(self) -> Tensor:
        """The share of the response that each channel gives alone: ``[C]``."""
        return self.wanted.diagonal() / self.covariance.diagonal()


def demand_of(survey: Survey, readers: Iterable[fx.Node]) -> Demand | None:
    """What layers that read the same channels make of them; ``None`` without statistics of any, or where the network has no numbers.

    Args:
        survey: of the network, with statistics or without.
        readers: calls of convolutions or linear layers; those that nothing was measured of do not count.
    """
    found: Demand | None = None
    readers = list(readers)
    # A gate that reads the averages says little of the maps.
    for reader in [reader for reader in readers if not is_pooled(reader)] or readers:
        path = path_of(reader)
        layer = survey.original.get_submodule(path)
        measured = None if survey.statistics is None else survey.statistics.layers.get(path)
        reading = reading_of(survey, reader)
        if measured is None or reading is None or not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        covariance = _ridged(measured.covariance)
        power = (reading * covariance).sum()
        if power <= 0:
            continue
        wanted = covariance @ reading @ covariance / power
        found = Demand(covariance, wanted) if found is None else Demand(found.covariance, found.wanted + wanted)
    return found


def demand_behind(survey: Survey, layer: fx.Node, activated: bool, readers: Iterable[fx.Node]) -> tuple[Demand, Tensor] | None:
    """What is read behind a pointwise layer, of the channels ahead of it.

    The layer ``z = a(norm(W x))`` is to give way to something else, and its readers are to get on with that. How ``x`` and ``z`` vary
    together follows from the statistics of ``x`` alone, where what goes into the activation ``a`` is about normal: its mean slope, which is
    taken for that of a ReLU (Bussgang's theorem).

    Args:
        survey: of the network.
        layer: the call of the pointwise layer.
        activated: whether an activation follows it and its norm.
        readers: calls of what reads ``z``.

    Returns:
        The demand on ``x``, and the cross-covariance of ``x`` ``[C]`` and ``z`` ``[K]``, the latter in units of what its readers make of
        it: ``[C, K]``. ``None`` as for :func:`demand_of`.
    """
    path = path_of(layer)
    module = survey.original.get_submodule(path)
    measured = None if survey.statistics is None else survey.statistics.layers.get(path)
    if measured is None or not isinstance(module, (nn.Conv2d, nn.Linear)) or module.weight.is_meta:
        return None
    weight = module.weight.detach().double().cpu().flatten(1)
    covariance = _ridged(measured.covariance)
    gain, shift = _norm_behind(survey, layer, weight.shape[0])
    bias = torch.zeros(len(weight), dtype=torch.float64) if module.bias is None else module.bias.detach().double().cpu()
    mean, spread = gain * (weight @ measured.mean + bias) + shift, gain.abs() * ((weight @ covariance) * weight).sum(1).sqrt()
    slope = torch.special.ndtr(mean / spread.clamp(min=1e-12)) if activated else torch.ones_like(mean)
    cross = covariance @ weight.T * (gain * slope)
    behind = demand_of(survey, readers)
    if behind is None:
        units = cross / cross.square().sum(0).sqrt().clamp(min=1e-12)
        return Demand(covariance, units @ units.T / len(weight)), units
    reading = behind.reading
    return Demand(covariance, cross @ reading @ cross.T), cross * reading.diagonal().clamp(min=0).sqrt()


def reading_of(survey: Survey, reader: fx.Node, counts: Tensor | None = None) -> Tensor | None:
    """How much each direction of its input counts in what a layer puts out, in the units of the norm behind it: ``[C, C]``, float64.

    The positions under a convolution's kernel are summed as they vary together.

    Args:
        survey: of the network.
        reader: a call of a convolution or linear layer.
        counts: how much each of its filters counts, as a factor of what it puts out: ``[out_channels]``; ``None`` is one.
    """
    path = path_of(reader)
    layer = survey.original.get_submodule(path)
    measured = None if survey.statistics is None else survey.statistics.layers.get(path)
    if measured is None or not isinstance(layer, (nn.Conv2d, nn.Linear)) or layer.weight.is_meta:
        return None
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    gain, _ = _norm_behind(survey, reader, layer.weight.shape[0])
    if counts is not None:
        gain = gain * counts
    weight = layer.weight.detach().double().cpu()
    outputs, inputs = weight.shape[:2]
    of_groups = (gain[:, None, None] * weight.reshape(outputs, inputs, -1)).reshape(groups, outputs // groups, inputs, -1)
    reading = torch.zeros(groups * inputs, groups * inputs, dtype=torch.float64)
    for group, scaled in enumerate(of_groups.transpose(1, 2)):  # [C / groups, O / groups, P]
        block = slice(group * inputs, (group + 1) * inputs)
        reading[block, block] = (scaled @ measured.overlap).flatten(1) @ scaled.flatten(1).T
    return reading


def _norm_behind(survey: Survey, layer: fx.Node, width: int) -> tuple[Tensor, Tensor]:
    """What the batch norm behind a layer multiplies its channels by, and adds to them; one and zero where there is none."""
    gain, shift = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    node = tail_of(layer).norm
    norm = None if node is None or is_activation(node) else survey.original.get_submodule(path_of(node))
    variance, mean = getattr(norm, "running_var", None), getattr(norm, "running_mean", None)
    if not isinstance(norm, nn.Module) or not isinstance(variance, Tensor) or not isinstance(mean, Tensor) or len(variance) != width:
        return gain, shift
    deviation = (variance.detach().double().cpu() + float(getattr(norm, "eps", 1e-5))).sqrt()
    scale, offset = getattr(norm, "weight", None), getattr(norm, "bias", None)
    gain = (scale.detach().double().cpu() if isinstance(scale, Tensor) else gain) / deviation
    shift = (offset.detach().double().cpu() if isinstance(offset, Tensor) else shift) - gain * mean.detach().double().cpu()
    return gain, shift


def _ridged(covariance: Tensor) -> Tensor:
    spread = covariance.diagonal().mean()
    return covariance + RIDGE * torch.where(spread > 0, spread, torch.ones_like(spread)) * torch.eye(len(covariance), dtype=torch.float64)
