"""What is minimised: the task's loss, what a teacher shows, and what the recipes' layers ask for.

``total = task + distill_logits * logit loss + distill_blocks * block loss + recipes' losses``, all in float32, whatever precision the
network runs in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped
from chansurg.surgery.layer import Moment
from chansurg.surgery.training.block_outputs import BlockOutputs, matched_blocks
from chansurg.surgery.training.distillation import block_loss, logit_loss
from chansurg.surgery.training.recipe_loss import layers_loss
from chansurg.surgery.training.teacher import Teacher

# Weights of auxiliary classifiers: 0.3 in Szegedy et al., "Going Deeper with Convolutions", section 5; Inception v3's authors take 0.4.
_AUXILIARY = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}


@dataclass(frozen=True)
class Losses:
    """The parts of one batch's loss.

    Args:
        total: scalar with a graph; what ``backward`` is called on.
        task: scalar, cross-entropy, auxiliary classifiers included; detached.
        distillation: scalar, the weighted sum of both distillations; detached, zero where there is none.
        recipe: scalar, the recipes' layers; detached, zero where there is none.
        outputs: logits ``[B, classes]`` float32 of the main classifier; detached.
    """

    total: Tensor
    task: Tensor
    distillation: Tensor
    recipe: Tensor
    outputs: Tensor


class Objective:
    """Runs the network on a batch and says how wrong it was.

    Args:
        model: the network in training, or a wrapper of it. May be made first and compiled or wrapped afterwards: set :attr:`model` then.
        teacher: shows what to put out; needed where ``distill_logits`` or ``distill_blocks`` is above 0.
        label_smoothing: share of each target that is spread over all classes, from 0 to below 1.
        distill_logits: weight of the logit loss (:func:`~chansurg.surgery.training.distillation.logit_loss`).
        temperature: of the logit loss.
        distill_blocks: weight of the block loss (:func:`~chansurg.surgery.training.distillation.block_loss`).

    Attributes:
        model: what is called on images.
        blocks: paths of the blocks that are distilled.

    Raises:
        InputError: where a number is impossible, a teacher is missing, or no block can be matched.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher | None = None,
        *,
        label_smoothing: float = 0.0,
        distill_logits: float = 0.0,
        temperature: float = 1.0,
        distill_blocks: float = 0.0,
    ) -> None:
        _require(0 <= label_smoothing < 1, "--label-smoothing", f"{label_smoothing} is not a share below 1", "Pass 0.1, for one.")
        _require(temperature > 0, "--temperature", f"{temperature} is not above 0", "Pass a number from 1 to 10.")
        _require(min(distill_logits, distill_blocks) >= 0, "--distill-logits, --distill-blocks", "A weight is negative", "Pass 0 or more.")
        wants_teacher = distill_logits > 0 or distill_blocks > 0
        _require(teacher is not None or not wants_teacher, "--teacher", "There is no teacher to distil from", "Pass --teacher MODEL.")
        self.model = model
        self.teacher = teacher if wants_teacher else None
        self.label_smoothing, self.temperature = label_smoothing, temperature
        self.distill_logits, self.distill_blocks = distill_logits, distill_blocks
        self.blocks: Sequence[str] = ()
        self._taps: list[BlockOutputs] = []
        if self.teacher is not None and distill_blocks > 0:
            networks = (unwrapped(model), self.teacher.network)
            self.blocks = matched_blocks(*networks)
            self._taps = [BlockOutputs(network, self.blocks) for network in networks]

    def __call__(self, images: Tensor, targets: Tensor, moment: Moment, *, closes_step: bool = True) -> Losses:
        """The loss of one batch; the network is in train mode.

        Args:
            images: ``[B, C, H, W]``.
            targets: ``[B]`` int64, or ``[B, classes]`` shares.
            moment: where the run stands.
            closes_step: whether this batch is the last before the optimizer's step (see :func:`chansurg.recipe_loss`).

        Raises:
            InputError: where the network puts out something else than logits.
        """
        logits, auxiliary, weight = _logits(self.model(images))
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            task = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
            for more in auxiliary:
                task = task + weight * F.cross_entropy(more.float(), targets, label_smoothing=self.label_smoothing)
            distillation = torch.zeros((), device=logits.device) if self.teacher is None else self._distil(self.teacher, images, logits)
            recipe = layers_loss(self.model, moment, closes_step=closes_step)
            total = task + distillation + recipe
        return Losses(total, task.detach(), distillation.detach(), recipe.detach(), logits.detach())

    def close(self) -> None:
        """Take every hook off the networks."""
        for taps in self._taps:
            taps.close()
        self._taps = []

    def _distil(self, teacher: Teacher, images: Tensor, logits: Tensor) -> Tensor:
        taught = teacher(images)
        loss = torch.zeros((), device=logits.device)
        if self.distill_logits > 0:
            loss = loss + self.distill_logits * logit_loss(logits, taught, self.temperature)
        if self._taps:
            student, shown = (taps.take() for taps in self._taps)
            loss = loss + self.distill_blocks * block_loss(student, shown)
        return loss


def _logits(outputs: Any) -> tuple[Tensor, list[Tensor], float]:
    """The main classifier's logits, those of auxiliary ones, and their weight."""
    weight = _AUXILIARY.get(type(outputs).__name__)
    main, *others = outputs if weight is not None else (outputs,)
    if not isinstance(main, Tensor) or main.ndim != 2:
        shape = list(main.shape) if isinstance(main, Tensor) else f"a {type(outputs).__name__}"
        raise InputError(
            f"The network is no image classifier: in train mode it puts out {shape}, not [B, classes].",
            where="the network in training",
            not_done="Nothing was trained.",
            to_do="Train it in a loop of your own: the task's loss plus chansurg.recipe_loss(model, progress).",
        )
    return main, [other for other in others if other is not None], weight or 0.0


def _require(holds: bool, option: str, what: str, to_do: str) -> None:
    if not holds:
        raise InputError(f"{what}.", where=f"option {option}", not_done="Nothing was trained.", to_do=to_do)
