"""Losses that draw a student towards its teacher: by logits, and by what matching blocks put out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def logit_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes, times the squared temperature.

    Hinton et al., "Distilling the Knowledge in a Neural Network", section 2: the factor keeps gradients as large as the task's, whatever
    the temperature.

    Args:
        student: logits ``[B, classes]``.
        teacher: logits ``[B, classes]``.
        temperature: divides both; above 0.

    Returns:
        A scalar: the mean over the batch, in nats.
    """
    ours, theirs = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def block_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """How far the student's blocks are from the teacher's: squared error over the teacher's squares, for each image and block.

    Args:
        student: outputs by path, ``[B, …]`` each.
        teacher: outputs of the same paths and shapes.

    Returns:
        A scalar: the mean over images and blocks; 1 for a student that puts out zeros.
    """
    errors = []
    for path, output in student.items():
        ours, theirs = output.float().flatten(1), teacher[path].float().flatten(1)
        size = theirs.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(((ours - theirs).square().sum(1) / size).mean())
    return torch.stack(errors).mean()
