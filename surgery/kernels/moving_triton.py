"""The kernels of :mod:`chansurg.surgery.kernels.moving` for CUDA."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chansurg.surgery.kernels.tiles import strides, tiles


def take(x: Tensor, index: Tensor, y: Tensor) -> None:
    """Write ``y`` ``[B, k, …]``."""
    tile = tiles(x, index.shape[1])
    extents = (index.shape[1], x[0, 0].numel())
    _take[tile.grid](x, index, y, *extents, *strides(x), *strides(y), CHANNELS=tile.channels, POSITIONS=tile.positions)


def add(stage: Tensor, branch: Tensor, index: Tensor, y: Tensor) -> None:
    """Write ``y`` ``[B, C, …]``: every channel looks up which one of the branch is added to it, so no two programs write to one place."""
    tile = tiles(stage, stage.shape[1])
    places = torch.full((stage.shape[1],), -1, dtype=torch.int64, device=stage.device)
    places[index] = torch.arange(index.numel(), device=stage.device)
    extents = (stage.shape[1], stage[0, 0].numel())
    _add[tile.grid](stage, branch, places, y, *extents, *strides(stage), *strides(branch), CHANNELS=tile.channels, POSITIONS=tile.positions)


@triton.jit
def _take(
    x, index, y, K, P, x_image, x_channel, x_position, y_image, y_channel, y_position, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    mask = (k < K)[:, None] & (at < P)[None, :]
    channel = tl.load(index + image * K + k, mask=k < K, other=0)
    value = tl.load(x + image * x_image + channel[:, None] * x_channel + at[None, :] * x_position, mask=mask)
    tl.store(y + image * y_image + k[:, None] * y_channel + at[None, :] * y_position, value, mask=mask)


@triton.jit
def _add(
    stage, branch, places, y, C, P, x_image, x_channel, x_position, y_image, y_channel, y_position,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = tl.program_id(2) * POSITIONS + tl.arange(0, POSITIONS)
    mask = (c < C)[:, None] & (at < P)[None, :]
    where = image * x_image + c[:, None] * x_channel + at[None, :] * x_position
    place = tl.load(places + c, mask=c < C, other=-1)
    added = branch + image * y_image + place[:, None] * y_channel + at[None, :] * y_position
    value = tl.load(stage + where, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(added, mask=mask & (place >= 0)[:, None], other=0.0).to(tl.float32)
    tl.store(y + where, value.to(y.dtype.element_ty), mask=mask)
