"""The kernels of :mod:`chansurg.recipes.slimconv.folding` for CUDA: the map is read once for all orders of the weights."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chansurg.surgery.kernels.tiles import strides, tiles


def forward(x: Tensor, weights: Tensor, folds: int, y: Tensor) -> None:
    """Write ``y`` ``[N, B, C / m, …]``, at most three orders."""
    size = x.shape[1] // folds
    tile = tiles(x, size)
    _forward[tile.grid](
        x, weights, y, y.stride(0), size, x[0, 0].numel(), *strides(x), *strides(y[0]),
        FOLDS=folds, ORDERS=weights.shape[1], CHANNELS=tile.channels, POSITIONS=tile.positions,
    )  # fmt: skip


def backward(gradient: Tensor, x: Tensor, weights: Tensor, folds: int, for_x: Tensor) -> Tensor:
    """Write the gradient of ``x``, and give that of the weights, summed tile by tile in an order that is always the same."""
    size = x.shape[1] // folds
    tile = tiles(x, size)
    for_weights = torch.empty(tile.grid[2], *weights.shape, dtype=torch.float32, device=x.device)
    _backward[tile.grid](
        gradient, x, weights, for_x, for_weights, gradient.stride(0), size, x[0, 0].numel(), *strides(x), *strides(gradient[0]),
        FOLDS=folds, ORDERS=weights.shape[1], CHANNELS=tile.channels, POSITIONS=tile.positions,
    )  # fmt: skip
    return for_weights.sum(0)


@triton.jit
def _forward(
    x, w, y, y_order, S, P, x_image, x_channel, x_position, y_image, y_channel, y_position,
    FOLDS: tl.constexpr, ORDERS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    mask = (s < S)[:, None] & (at < P)[None, :]
    one = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    two = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    three = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    weights = w + image * ORDERS * FOLDS * S
    for fold in range(FOLDS):
        c = fold * S + s
        value = tl.load(x + image * x_image + c[:, None] * x_channel + at[None, :] * x_position, mask=mask, other=0.0).to(tl.float32)
        one += tl.load(weights + c, mask=s < S, other=0.0)[:, None] * value
        if ORDERS > 1:
            two += tl.load(weights + FOLDS * S + c, mask=s < S, other=0.0)[:, None] * value
        if ORDERS > 2:
            three += tl.load(weights + 2 * FOLDS * S + c, mask=s < S, other=0.0)[:, None] * value
    out = y + image * y_image + s[:, None] * y_channel + at[None, :] * y_position
    tl.store(out, one.to(y.dtype.element_ty), mask=mask)
    if ORDERS > 1:
        tl.store(out + y_order, two.to(y.dtype.element_ty), mask=mask)
    if ORDERS > 2:
        tl.store(out + 2 * y_order, three.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    gradient, x, w, for_x, for_w, y_order, S, P, x_image, x_channel, x_position, y_image, y_channel, y_position,
    FOLDS: tl.constexpr, ORDERS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    s = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    mask = (s < S)[:, None] & (at < P)[None, :]
    weights = w + image * ORDERS * FOLDS * S
    sums = for_w + (tl.program_id(2) * tl.num_programs(0) + image) * ORDERS * FOLDS * S
    source = gradient + image * y_image + s[:, None] * y_channel + at[None, :] * y_position
    for fold in range(FOLDS):
        c = fold * S + s
        where = image * x_image + c[:, None] * x_channel + at[None, :] * x_position
        value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
        spread = tl.zeros((CHANNELS, POSITIONS), tl.float32)
        for order in tl.static_range(ORDERS):
            g = tl.load(source + order * y_order, mask=mask, other=0.0).to(tl.float32)
            spread += tl.load(weights + order * FOLDS * S + c, mask=s < S, other=0.0)[:, None] * g
            tl.store(sums + order * FOLDS * S + c, tl.sum(g * value, 1), mask=s < S)
        tl.store(for_x + where, spread.to(for_x.dtype.element_ty), mask=mask)
