"""The kernels of :mod:`chansurg.recipes.pix.fusing` for CUDA: what a tile reads is read from memory once, and once more from the cache."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from chansurg.surgery.kernels.tiles import strides, tiles


def forward(x: Tensor, p: Tensor, order: Tensor | None, numbers: Sequence[int], strided: bool, least: bool, tau: float, y: Tensor) -> None:
    """Write ``y`` ``[B, K, …]``; ``numbers`` are the subsets of the first size, that size, and the other one."""
    tile = tiles(x, p.shape[1])
    _forward[tile.grid](
        x, p.contiguous(), x if order is None else order, y, p.shape[1], x[0, 0].numel(), *strides(x), *strides(y), *numbers, tau,
        **_constants(tile, numbers, order, strided, least),
    )  # fmt: skip


def backward(
    gradient: Tensor,
    x: Tensor,
    p: Tensor,
    order: Tensor | None,
    numbers: Sequence[int],
    strided: bool,
    least: bool,
    tau: float,
    for_x: Tensor,
) -> Tensor:
    """Write the gradient of ``x``, and give that of ``p`` in single precision, summed tile by tile in an order that is always the same."""
    tile = tiles(x, p.shape[1])
    for_p = torch.empty(tile.grid[2], *p.shape, dtype=torch.float32, device=x.device)
    _backward[tile.grid](
        gradient, x, p.contiguous(), x if order is None else order, for_x, for_p, p.shape[1], x[0, 0].numel(), *strides(x),
        *strides(gradient), *numbers, tau, **_constants(tile, numbers, order, strided, least),
    )  # fmt: skip
    return for_p.sum(0)


def _constants(tile: Any, numbers: Sequence[int], order: Tensor | None, strided: bool, least: bool) -> dict[str, Any]:
    sizes = {"SIZE": max(numbers[1:]), "CHANNELS": tile.channels, "POSITIONS": tile.positions}
    return {**sizes, "NAMED": order is not None, "STRIDED": strided, "LEAST": least}


@triton.jit
def _channels(order, k, place, K, first, longer, shorter, NAMED: tl.constexpr, STRIDED: tl.constexpr):
    """The channel at a place of each subset ``k``, and whether there is one."""
    inside = (place < tl.where(k < first, longer, shorter)) & (k < K)
    if STRIDED:
        channel = place * K + k
    else:
        channel = tl.where(k < first, k * longer, first * longer + (k - first) * shorter) + place
    if NAMED:
        channel = tl.load(order + channel, mask=inside, other=0)
    return channel, inside


@triton.jit
def _extreme(one, other, LEAST: tl.constexpr):
    further = other < one if LEAST else other > one
    return tl.where(further | (other != other), other, one)


@triton.jit
def _reduced(
    x, order, k, at, K, P, x_channel, x_position, first, longer, shorter,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, NAMED: tl.constexpr, STRIDED: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Extreme and sum of each subset ``k`` at the positions ``at``."""
    picked = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    total = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for place in range(SIZE):
        channel, inside = _channels(order, k, place, K, first, longer, shorter, NAMED, STRIDED)
        mask = inside[:, None] & (at < P)[None, :]
        value = tl.load(x + channel[:, None] * x_channel + at[None, :] * x_position, mask=mask, other=0.0).to(tl.float32)
        picked = tl.where(place == 0, value, tl.where(inside[:, None], _extreme(picked, value, LEAST), picked))
        total += value
    return picked, total


@triton.jit
def _forward(
    x, p, order, y, K, P, x_image, x_channel, x_position, y_image, y_channel, y_position, first, longer, shorter, tau,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, NAMED: tl.constexpr, STRIDED: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    factor = tl.load(p + image * K + k, mask=k < K, other=0.0).to(tl.float32)
    picked, total = _reduced(
        x + image * x_image,
        order,
        k,
        at,
        K,
        P,
        x_channel,
        x_position,
        first,
        longer,
        shorter,
        SIZE,
        CHANNELS,
        POSITIONS,
        NAMED,
        STRIDED,
        LEAST,
    )
    size = tl.where(k < first, longer, shorter).to(tl.float32)
    found = factor[:, None] * tl.where((factor <= tau)[:, None], picked, total / size[:, None])
    mask = (k < K)[:, None] & (at < P)[None, :]
    tl.store(y + image * y_image + k[:, None] * y_channel + at[None, :] * y_position, found.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    gradient, x, p, order, for_x, for_p, K, P, x_image, x_channel, x_position, y_image, y_channel, y_position, first, longer, shorter, tau,
    SIZE: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr, NAMED: tl.constexpr, STRIDED: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    factor = tl.load(p + image * K + k, mask=k < K, other=0.0).to(tl.float32)
    picks = (factor <= tau)[:, None]
    picked, total = _reduced(
        x + image * x_image,
        order,
        k,
        at,
        K,
        P,
        x_channel,
        x_position,
        first,
        longer,
        shorter,
        SIZE,
        CHANNELS,
        POSITIONS,
        NAMED,
        STRIDED,
        LEAST,
    )
    ties = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for place in range(SIZE):
        channel, inside = _channels(order, k, place, K, first, longer, shorter, NAMED, STRIDED)
        mask = inside[:, None] & (at < P)[None, :]
        value = tl.load(x + image * x_image + channel[:, None] * x_channel + at[None, :] * x_position, mask=mask, other=0.0).to(tl.float32)
        ties += tl.where(mask & (value == picked), 1.0, 0.0)
    size = tl.where(k < first, longer, shorter).to(tl.float32)[:, None]
    whole = (k < K)[:, None] & (at < P)[None, :]
    g = tl.load(gradient + image * y_image + k[:, None] * y_channel + at[None, :] * y_position, mask=whole, other=0.0).to(tl.float32)
    received = tl.sum(tl.where(whole, g * tl.where(picks, picked, total / size), 0.0), 1)
    tl.store(for_p + (tl.program_id(2) * tl.num_programs(0) + image) * K + k, received, mask=k < K)
    each = g * factor[:, None] / tl.where(picks, ties, size)
    for place in range(SIZE):
        channel, inside = _channels(order, k, place, K, first, longer, shorter, NAMED, STRIDED)
        mask = inside[:, None] & (at < P)[None, :]
        where = image * x_image + channel[:, None] * x_channel + at[None, :] * x_position
        value = tl.load(x + where, mask=mask, other=0.0).to(tl.float32)
        given = tl.where(picks & (value != picked), 0.0, each)
        tl.store(for_x + where, given.to(for_x.dtype.element_ty), mask=mask)
