"""Ridge least squares for one layer, drawn towards the weights that it has, judged on samples that it was not solved for.

For inputs ``x``, targets ``t`` and present weights ``W0`` the solution minimises ``|x W - t|^2 + n r |W - W0|^2``, where ``r`` is a ridge
times the mean variance of the inputs: where the samples say nothing of a direction, the weights stay what they were.

Source: He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, Section 3.1 (their reconstruction step);
the anchor takes the place of their zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chansurg.surgery.calibration.moments import Moments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the inputs' mean variance; the best on held-out samples is taken."""
GAIN = 1e-3
"""A solution is kept where the held-out error falls by this share at least: rounding alone must not change a layer."""


@dataclass(frozen=True)
class Solution:
    """The weights of one layer.

    Args:
        weight: ``[G, K, D]``, float64.
        bias: ``[G, K]``, float64.
        before: held-out mean square error of the weights that were there, over the targets' variance.
        error: that of these.
        ridge: which of :data:`RIDGES` served; ``None`` where the weights that were there are the best.
    """

    weight: Tensor
    bias: Tensor
    before: float
    error: float
    ridge: float | None


def solve(fitted: Moments, held_out: Moments, weight: Tensor, bias: Tensor, *, intercept: bool) -> Solution:
    """The best weights for the samples.

    Args:
        fitted: moments that are solved for.
        held_out: moments that decide between ridges, and whether anything changes at all.
        weight: present weights ``[G, K, D]``.
        bias: present bias ``[G, K]``.
        intercept: whether the bias may change.
    """
    weight, bias = weight.double().cpu(), bias.double().cpu()
    spread = float(held_out.spread().sum())
    scale = spread if spread > 0 else 1.0
    before = float(held_out.mean_square_error(weight, bias).sum()) / scale
    best = Solution(weight, bias, before, before, None)
    if before <= torch.finfo(torch.float32).eps:
        return best
    products = fitted.inputs[:, :-1, :-1] / fitted.count
    crossed = fitted.responses[:, :-1] / fitted.count
    mean = fitted.inputs[:, :-1, -1] / fitted.count
    mean_target = fitted.responses[:, -1] / fitted.count
    if intercept:
        products = products - mean.unsqueeze(2) * mean.unsqueeze(1)
        crossed = crossed - mean.unsqueeze(2) * mean_target.unsqueeze(1)
    else:
        crossed = crossed - mean.unsqueeze(2) * bias.unsqueeze(1)
    variance = products.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    unit = torch.eye(products.shape[1], dtype=torch.float64)
    for ridge in RIDGES:
        strength = ridge * variance + torch.finfo(torch.float32).tiny
        factor, failed = torch.linalg.cholesky_ex(products + strength * unit)
        if failed.any():
            continue
        found = torch.cholesky_solve(crossed + strength * weight.mT, factor).mT
        shift = mean_target - (found @ mean.unsqueeze(2)).squeeze(2) if intercept else bias
        error = float(held_out.mean_square_error(found, shift).sum()) / scale
        if error < best.error and error <= before * (1 - GAIN):
            best = Solution(found, shift, before, error, ridge)
    return best
