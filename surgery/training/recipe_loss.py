"""What the recipes' layers add to the loss, in a training loop of one's own.

Layers that train towards something (gates that learn to close, for one) derive it from the batch that they have just seen. One call
after the forward collects it, and is all that such a loop needs::

    gated = chansurg.convert(network, "pcs").train()
    for step, (images, labels) in enumerate(batches):
        logits = gated(images)
        loss = F.cross_entropy(logits, labels) + chansurg.recipe_loss(gated, (step + 1) / steps, steps=steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.layer import Moment, RecipeLayer


def recipe_loss(
    model: nn.Module,
    progress: float,
    *,
    steps: int | None = None,
    epoch: float | None = None,
    pressure: float | None = None,
    closes_step: bool = True,
    mean: Callable[[Tensor], Tensor] = Moment.mean,
    any: Callable[[Tensor], Tensor] = Moment.any,
) -> Tensor:
    """The sum of what the network's recipe layers add to the loss of the batch that it has just seen in train mode.

    Args:
        model: a converted network, or one wrapped in DistributedDataParallel or by ``torch.compile``.
        progress: how much of the run is done, this batch included, from above 0 to 1 for the last one.
        steps: optimizer steps of the whole run, where they are known.
        epoch: the share of the run that one pass over the data takes, from 0 to 1, where that is known.
        pressure: the rate at which gates shrink, in place of their own schedules.
        closes_step: whether this batch is the last one before the optimizer's step; false for the others where gradients are accumulated.
        mean: the mean of a tensor over all processes, where there are several.
        any: for a tensor of bools, where it is true in any process.

    Returns:
        A scalar on the network's device; zero where no layer adds anything.

    Raises:
        InputError: where ``progress`` is not between 0 and 1.
    """
    if not 0 <= progress <= 1:
        raise InputError(
            f"Progress {progress} is not between 0 and 1.",
            where="chansurg.recipe_loss",
            not_done="The loss was not computed.",
            to_do="Pass the share of the run that is done: (step + 1) / steps.",
        )
    return layers_loss(model, Moment(progress, steps, epoch, pressure, mean, any), closes_step=closes_step)


def layers_loss(model: nn.Module, moment: Moment, *, closes_step: bool) -> Tensor:
    """:func:`recipe_loss` at a moment that is already written down."""
    network = unwrapped(model)
    layers = [module for module in network.modules() if isinstance(module, RecipeLayer)]
    terms = [term for layer in layers if (term := layer.training_loss(moment)) is not None]
    if closes_step:
        for layer in layers:
            layer.step_taken(moment)
    if terms:
        return torch.stack([term.float() for term in terms]).sum()
    return torch.zeros((), device=next((parameter.device for parameter in network.parameters()), None))
