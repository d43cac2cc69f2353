"""How Triton kernels divide a map ``[B, C, P]``: one program for each image, run of channels, and run of positions."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from chansurg.surgery.kernels.layouts import channels_innermost, positions

_ELEMENTS = 1024
_LEAST_ROWS = 4


class Tiles(NamedTuple):
    """A grid of tiles.

    Args:
        channels: in a tile, a power of two.
        positions: likewise.
        grid: programs along images, channels and positions.
    """

    channels: int
    positions: int
    grid: tuple[int, int, int]


def tiles(x: Tensor, channels: int) -> Tiles:
    """Tiles over ``channels`` channels at the positions of ``x``, long along what lies next to each other in memory."""
    inner, outer = (channels, positions(x)) if channels_innermost(x) else (positions(x), channels)
    long = min(_ELEMENTS // _LEAST_ROWS, _power_of_two(inner))
    short = min(_ELEMENTS // long, _power_of_two(outer))
    wide, tall = (long, short) if channels_innermost(x) else (short, long)
    return Tiles(wide, tall, (x.shape[0], -(-channels // wide), -(-positions(x) // tall)))


def strides(x: Tensor) -> tuple[int, int, int]:
    """Between images, channels and positions of a map without gaps."""
    if channels_innermost(x):
        return positions(x) * x.shape[1], 1, x.shape[1]
    return positions(x) * x.shape[1], positions(x), 1


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
