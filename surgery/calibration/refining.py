"""Distillation without labels: some layers trained for a few steps to give what the original's give, from what really goes into them.

First segment by segment: each is a small problem, and serves the whole (:func:`refine`). What one segment could not reach, those behind it
may still make up for, and those before it may ease: so in the end all of them are trained together, towards what the original computes at
every cut (:func:`refine_together`).

Sources: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, Section 3.2, for blocks as
units; Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, Section 2.2, for hidden layers as what a whole network is led by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chansurg.surgery.calibration.playing import Carried, Player, batch_size, selected
from chansurg.surgery.calibration.segments import Segment

LEARNING_RATE = 3e-3
FULL_RATE_STEPS = 200
"""A whole network that is given fewer steps takes them at a rate that is lower in proportion: what a long run loses at its beginning, and
wins back many times over, a short one would lose for good."""
WARMING_UP = 0.1
"""Share of the steps over which the rate rises; behind that it falls along a cosine to nothing."""
LOOKS = 8
"""How often the held-out error is looked at."""
LARGEST_BATCH, SMALLEST_BATCH = 64, 8
BATCH_PIXELS = 64 * 64 * 64
"""A batch has so many pixels, so that networks for large images take a step with few of them: each has more positions."""
MEASURING = 64
"""Images that tell how large the original's activations are."""


@dataclass(frozen=True)
class Descent:
    """What is trained, and for how long.

    Args:
        parameters: what may change.
        steps: optimizer steps, one at least.
        batch: images in each.
        generator: draws batches.
        look: called now and then, and at the end.
    """

    parameters: Sequence[nn.Parameter]
    steps: int
    batch: int
    generator: torch.Generator
    look: Callable[[], None]


def images_a_step(size: Sequence[int]) -> int:
    """How many images make a batch, for an input ``(C, H, W)``."""
    return max(SMALLEST_BATCH, min(LARGEST_BATCH, BATCH_PIXELS // (size[-1] * size[-2])))


def refine(player: Player, segment: Segment, carried: Carried, descent: Descent) -> None:
    """Train a segment of the converted network, in eval mode: its norms work as they will.

    Args:
        player: of the converted network.
        segment: the segment.
        carried: images to fit on, carried to the segment's beginning.
        descent: what is trained, and for how long.
    """
    inputs, targets = torch.cat(carried.ours), torch.cat(carried.targets)
    scale = float(targets.var())
    if not scale > 0:
        return

    def losses(chosen: Tensor) -> Iterator[Tensor]:
        for few in torch.split(chosen.to(inputs.device), max(1, batch_size([segment.converted]) // 2)):
            yield _apart(player.output(segment.converted, inputs[few]), targets[few]) / (scale * len(chosen))

    _descend(descent, losses, len(inputs), LEARNING_RATE)


def refine_together(
    players: tuple[Player, Player],
    whole: Segment,
    cut: Sequence[Segment],
    carried: Carried,
    descent: Descent,
) -> None:
    """Train segments together, in eval mode. The output weighs as much as all other ends of segments.

    Args:
        players: of the original and of the converted network.
        whole: all that the segments are cut from.
        cut: the segments, in order; two at least.
        carried: images to fit on, at the beginning of ``whole``.
        descent: what is trained, and for how long.
    """
    theirs, ours = torch.cat(carried.theirs), torch.cat(carried.ours)
    size = max(1, batch_size([whole.original, whole.converted]) // 2)

    def wanted(few: Tensor) -> list[Tensor]:
        with torch.no_grad():
            found = players[0].run(whole.original, theirs[few], keep={segment.original.exit for segment in cut})
        return [selected(segment, found[segment.original.exit]) for segment in cut]

    measured = torch.arange(min(MEASURING, len(theirs)), device=theirs.device)
    shares = [1 / (len(cut) - 1)] * (len(cut) - 1) + [1.0]
    scales = _variances(wanted(few) for few in torch.split(measured, size))
    weights = [share / scale if scale > 0 else 0.0 for share, scale in zip(shares, scales, strict=True)]

    def losses(chosen: Tensor) -> Iterator[Tensor]:
        for few in torch.split(chosen.to(ours.device), size):
            found = players[1].run(whole.converted, ours[few], keep={segment.converted.exit for segment in cut})
            given = [found[segment.converted.exit] for segment in cut]
            apart = [weight * _apart(x, target) for weight, x, target in zip(weights, given, wanted(few), strict=True)]
            yield torch.stack(apart).sum() / len(chosen)

    _descend(descent, losses, len(ours), LEARNING_RATE * min(1.0, descent.steps / FULL_RATE_STEPS))


def _descend(descent: Descent, losses: Callable[[Tensor], Iterator[Tensor]], images: int, peak: float) -> None:
    """Adam on the sum of what ``losses`` gives for images, told their numbers; each loss is sent back before the next is made."""
    parameters, steps = descent.parameters, descent.steps
    if not parameters:
        return
    # Adam written out by torch in one call for all tensors is no faster on a CPU, and other bits on other machines.
    optimizer = torch.optim.Adam(parameters, lr=peak, foreach=False)
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = peak * _rate((step + 1) / steps)
            optimizer.zero_grad()
            with torch.enable_grad():
                for loss in losses(torch.randperm(images, generator=descent.generator)[: descent.batch]):
                    loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if (step + 1) * LOOKS // steps > step * LOOKS // steps:
                descent.look()
    finally:
        for parameter, was in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(was)
            parameter.grad = None


def _apart(given: Tensor, target: Tensor) -> Tensor:
    """Mean squares of the differences of each image, summed over the images."""
    return (given - target).square().flatten(1).mean(1).sum()


def _variances(batches: Iterable[list[Tensor]]) -> list[float]:
    """Of each of several tensors, about its one mean, over all batches; 0 where rounding is all that there is."""
    found = [[(float(x.mean()), float(x.square().mean()), len(x)) for x in map(Tensor.float, tensors)] for tensors in batches]
    variances = []
    for parts in zip(*found, strict=True):
        images = sum(count for _, _, count in parts)
        mean = sum(mean * count for mean, _, count in parts) / images
        square = sum(square * count for _, square, count in parts) / images
        variances.append(square - mean**2 if square - mean**2 > 1e-6 * square else 0.0)
    return variances


def _rate(progress: float) -> float:
    if progress < WARMING_UP:
        return progress / WARMING_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMING_UP) / (1 - WARMING_UP)))
