"""Block-wise distillation: a segment trained for a few steps to give what the original's gives, from what really goes into it.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, Section 3.2: blocks are the
unit at which fitting separately still serves the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from chansurg.surgery.calibration.playing import Carried, Player, batch_size
from chansurg.surgery.calibration.segments import Segment

LEARNING_RATE = 3e-3
WARMING_UP = 0.1
"""Share of the steps over which the rate rises; behind that it falls along a cosine to nothing."""
LOOKS = 8
"""How often the held-out error is looked at."""
LARGEST_BATCH, SMALLEST_BATCH = 64, 8
BATCH_PIXELS = 64 * 64 * 64
"""A batch has so many pixels, so that networks for large images take a step with few of them: each has more positions."""


def images_a_step(size: Sequence[int]) -> int:
    """How many images make a batch, for an input ``(C, H, W)``."""
    return max(SMALLEST_BATCH, min(LARGEST_BATCH, BATCH_PIXELS // (size[-1] * size[-2])))


def refine(
    player: Player,
    segment: Segment,
    parameters: Sequence[nn.Parameter],
    carried: Carried,
    steps: int,
    batch: int,
    generator: torch.Generator,
    look: Callable[[], None],
) -> None:
    """Train a segment of the converted network, in eval mode: its norms work as they will.

    Args:
        player: of the converted network.
        segment: the segment.
        parameters: what may change.
        carried: images to fit on, carried to the segment's beginning.
        steps: optimizer steps.
        batch: images in each.
        generator: draws batches.
        look: called now and then, and at the end.
    """
    inputs, targets = torch.cat(carried.ours), torch.cat(carried.targets)
    scale = float(targets.var())
    if not parameters or not steps or not scale > 0:
        return
    # Adam written out by torch in one call for all tensors is no faster on a CPU, and other bits on other machines.
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, foreach=False)
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    at_once = batch_size([segment.converted])
    try:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _rate((step + 1) / steps)
            chosen = torch.randperm(len(inputs), generator=generator)[:batch].to(inputs.device)
            optimizer.zero_grad()
            for few in torch.split(chosen, max(1, at_once // 2)):
                _backward(player, segment, inputs[few], targets[few], scale * len(chosen))
            optimizer.step()
            if (step + 1) * LOOKS // steps > step * LOOKS // steps:
                look()
    finally:
        for parameter, was in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(was)
            parameter.grad = None


def _backward(player: Player, segment: Segment, x: Tensor, target: Tensor, scale: float) -> None:
    with torch.enable_grad():
        given = player.output(segment.converted, x)
        loss = (given - target).square().flatten(1).mean(1).sum() / scale
        loss.backward()  # type: ignore[no-untyped-call]


def _rate(progress: float) -> float:
    if progress < WARMING_UP:
        return progress / WARMING_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMING_UP) / (1 - WARMING_UP)))
