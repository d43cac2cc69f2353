"""The proof of a slicing: the masked network and the sliced one, run on the same inputs, in float32 and in float64.

Inputs of several sizes, alone and three together, ordinary and extreme. What the two may differ by is rounding: sums over fewer channels
are taken in another order. Where the masked network itself rounds more than the tolerance allows, as a network does in which small
differences of large numbers matter, its own rounding (float32 against float64) is the measure, and the figures say so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import Refusal
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.nested import tensors_in
from chansurg.surgery.verification import finite_numbers, gap, relative, verify

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Largest difference over the largest output of the same image."""
ROUNDINGS = 4.0
"""A network that rounds more than that by itself may differ by this many times its own rounding."""
LARGE = 100.0
BATCH_SIZES = (1, 3)


@dataclass(frozen=True)
class Proof:
    """How far two networks are apart, and what they were tried on.

    Args:
        max_abs_error: largest difference of two outputs in float32.
        max_rel_error: largest difference over the largest output of the same image, in float32.
        max_rel_error_float64: the same in float64.
        tolerance: what was allowed in float32.
        tolerance_float64: what was allowed in float64.
        rounding: what the masked network itself rounds in float32, as a relative error.
        masking_drift: how far masking (and freezing, where that was asked for) moves the outputs by itself: Euclidean, relative.
        sizes: the input sizes tried.
        images: how many images were tried in each precision.
    """

    max_abs_error: float
    max_rel_error: float
    max_rel_error_float64: float
    tolerance: float
    tolerance_float64: float
    rounding: float
    masking_drift: float
    sizes: tuple[tuple[int, ...], ...]
    images: int

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "sizes": [list(size) for size in self.sizes]}


def prove(masked: nn.Module, sliced: nn.Module, unmasked: nn.Module, input_size: tuple[int, ...], *, seed: int = 0) -> Proof:
    """See that slicing changed nothing.

    Args:
        masked: the network with its masks applied, or frozen.
        sliced: the same after slicing.
        unmasked: the network as if nothing were masked or frozen, for the drift.
        input_size: ``(C, H, W)``; a larger and a smaller one are tried too, where the network takes them.
        seed: of the inputs.

    Raises:
        Refusal: where they differ beyond rounding, naming the first block where they part.
    """
    single, double = (_copies((masked, sliced, unmasked), dtype) for dtype in TOLERANCE)
    figures = _Figures()
    sizes: list[tuple[int, ...]] = []
    for size in _sizes(input_size):
        for x in _inputs(size, seed):
            exact = _outputs(double[0], x)
            if exact is None and size != input_size:
                break  # the network does not take this size
            if exact is None:
                raise _does_not_run(input_size)
            figures.take(exact, *(_outputs(network, x) for network in (double[1], single[0], single[1])))
            if size == input_size and not figures.drifts:
                figures.drift(_outputs(single[0], x), _outputs(single[2], x))
        else:
            sizes.append(size)
    allowed = max(TOLERANCE[torch.float32], ROUNDINGS * figures.rounding)
    allowed_double = max(TOLERANCE[torch.float64], ROUNDINGS * figures.rounding * _FINER)
    proof = Proof(
        max_abs_error=figures.absolute,
        max_rel_error=figures.relative,
        max_rel_error_float64=figures.relative_double,
        tolerance=allowed,
        tolerance_float64=allowed_double,
        rounding=figures.rounding,
        masking_drift=max(figures.drifts, default=0.0),
        sizes=tuple(sizes),
        images=figures.images,
    )
    if not (figures.relative <= allowed and figures.relative_double <= allowed_double):
        raise _parted(double[0], double[1], input_size, proof)
    return proof


_FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps


class _Figures:
    def __init__(self) -> None:
        self.absolute = self.relative = self.relative_double = self.rounding = 0.0
        self.drifts: list[float] = []
        self.images = 0

    def take(self, exact: list[Tensor], double: list[Tensor] | None, masked: list[Tensor] | None, sliced: list[Tensor] | None) -> None:
        """One input's outputs: of the masked network in float64, of the sliced one in float64, of both in float32."""
        self.images += len(exact[0]) if exact else 0
        self.relative_double = max(self.relative_double, _apart(exact, double)[1])
        absolute, by_size = _apart(masked, sliced)
        self.absolute, self.relative = max(self.absolute, absolute), max(self.relative, by_size)
        self.rounding = max(self.rounding, _apart(exact, masked)[1])

    def drift(self, masked: list[Tensor] | None, unmasked: list[Tensor] | None) -> None:
        """What masking changes by itself, for one input."""
        for p, q in zip(unmasked or [], masked or [], strict=True):
            self.drifts.append(relative(gap(p, q).norm(), finite_numbers(p).norm()))


def _apart(a: list[Tensor] | None, b: list[Tensor] | None) -> tuple[float, float]:
    """Largest difference, and largest difference over the largest output of the same image."""
    infinite = (float("inf"), float("inf"))
    if a is None or b is None or [p.shape for p in a] != [q.shape for q in b]:
        return infinite
    absolute = by_size = 0.0
    for p, q in zip(a, b, strict=True):
        for image, other in zip(p, q, strict=True) if p.ndim and p.numel() else ():
            largest = gap(image, other).max()
            absolute = max(absolute, largest.item())
            by_size = max(by_size, relative(largest, finite_numbers(image).abs().max()))
    return absolute, by_size


def _copies(networks: Sequence[nn.Module], dtype: torch.dtype) -> list[nn.Module]:
    return [copy.deepcopy(network).to(device="cpu", dtype=dtype) for network in networks]


def _outputs(network: nn.Module, x: Tensor) -> list[Tensor] | None:
    """Floating tensors that the network puts out; ``None`` where it does not run."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad(), eval_mode(network):
            return [tensor for tensor in tensors_in(network(x.to(dtype))) if tensor.is_floating_point()]
    except Exception:  # foreign code refuses sizes in its own ways
        return None


def _sizes(input_size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The network's own size, a larger one and a smaller one; multiples of eight stay multiples of eight."""
    channels, *sides = input_size
    yield input_size
    steps = [max(8, side // 64 * 8) for side in sides]
    yield (channels, *(side + step for side, step in zip(sides, steps, strict=True)))
    smaller = (channels, *(side - step for side, step in zip(sides, steps, strict=True)))
    if min(smaller) > 0:
        yield smaller


def _inputs(size: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """Ordinary and extreme images, alone and three together."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = torch.randn(4, *size, generator=generator)
    yield ordinary[:1]
    one = torch.zeros(size)
    one[0, size[-2] // 2, size[-1] // 2] = 1.0
    yield torch.stack([torch.zeros(size), LARGE * ordinary[1], one])
    yield torch.stack([-ordinary[2].abs(), ordinary[3] * (ordinary[3] > 2), ordinary[0].flip(-1)])


def _does_not_run(size: tuple[int, ...]) -> Refusal:
    return Refusal(
        f"The masked network does not run on an image of size {'x'.join(map(str, size))}, so nothing can be shown.",
        where="the proof",
        not_done="The network was not sliced, and nothing was written.",
        to_do="Pass the input size that it takes: --input-size C,H,W.",
    )


def _parted(masked: nn.Module, sliced: nn.Module, size: tuple[int, ...], proof: Proof) -> Refusal:
    blocks = verify(masked, sliced, input_size=size).blocks
    first = next((path for path, error in blocks.items() if not error <= proof.tolerance_float64), "the output")
    return Refusal(
        f"The sliced network is not the masked one: their outputs differ by {proof.max_rel_error:.1e} of the largest in float32 (allowed: "
        f"{proof.tolerance:.1e}) and by {proof.max_rel_error_float64:.1e} in float64 (allowed: {proof.tolerance_float64:.1e}).",
        where=f"they part at {first}",
        not_done="The network was not sliced, and nothing was written.",
        to_do="Please report it with the architecture's name; --residual coupled, or masks that leave that block alone, may serve.",
    )
