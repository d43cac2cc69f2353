"""A teacher: a trained network that shows another what to put out.

It may have been trained with another normalisation, at another input size and with its classes in another order. A :class:`Teacher`
answers in the student's terms: it takes the batch that the student sees, and gives logits in the student's order of classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of, unwrapped
from chansurg.surgery.journal import Record
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.opening import load


class Teacher:
    """A frozen network in eval mode that answers in its student's terms.

    Args:
        teacher: a network, of which a copy is taken, or anything that :func:`chansurg.load` takes.
        student: the student's record: how its batches were prepared, and its classes.
        outputs: how many outputs the student has.
        device: where the teacher runs; ``None`` is where it is.
        autocast: run it under autocast in this dtype; ``None`` is its own precision.

    Raises:
        InputError: where it cannot be loaded, is no classifier, or its classes cannot be matched to the student's.
    """

    def __init__(
        self,
        teacher: nn.Module | str | os.PathLike[str],
        student: Record,
        outputs: int,
        *,
        device: torch.device | str | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        network = copy.deepcopy(unwrapped(teacher)) if isinstance(teacher, nn.Module) else load(teacher)
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        self.autocast = autocast
        record = record_of(self.network)
        self._translate = _Translation(student.preprocessing, record.preprocessing, self.device)
        known = classifier_outputs(self.network, record.preprocessing.input_size, role="teacher")
        self._classes = match_teacher_classes(student.class_names, outputs, record.class_names, known)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """What the teacher says of a batch.

        Args:
            images: ``[B, C, H, W]`` as the student sees them, on the teacher's device.

        Returns:
            Logits ``[B, classes]``, float32, in the student's order of classes.
        """
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            seen = self._translate(images.float())
            dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
            logits: Tensor = self.network(seen.to(dtype)).float()
        return logits if self._classes is None else logits[:, self._classes]


class _Translation:
    """From one network's prepared images to another's: grey or colour, size, normalisation."""

    def __init__(self, source: Preprocessing, target: Preprocessing, device: torch.device) -> None:
        self.source, self.target = _statistics(source, device), _statistics(target, device)
        self.channels, *self.size = target.input_size
        self.interpolation = target.interpolation
        self.same = all(torch.equal(ours, theirs) for ours, theirs in zip(self.source, self.target, strict=True))
        if source.input_size[0] != self.channels and {source.input_size[0], self.channels} != {1, 3}:
            raise InputError(
                f"The teacher takes {self.channels} input channels, the student {source.input_size[0]}.",
                where="option --teacher",
                not_done="Nothing was trained.",
                to_do="Take a teacher with the student's input channels.",
            )

    def __call__(self, images: Tensor) -> Tensor:
        """``[B, C, H, W]`` for the student to ``[B, C', H', W']`` for the teacher."""
        recoloured = images.shape[1] != self.channels
        resized = list(images.shape[-2:]) != self.size
        if self.same and not recoloured and not resized:
            return images
        (mean, std), (wanted_mean, wanted_std) = self.source, self.target
        pixels = images * std + mean
        if recoloured:
            pixels = functional.rgb_to_grayscale(pixels) if self.channels == 1 else pixels.expand(-1, self.channels, -1, -1)
        if resized:
            mode = self.interpolation
            smooth = mode != "nearest"
            pixels = F.interpolate(pixels, self.size, mode=mode, align_corners=False if smooth else None, antialias=smooth)
        return (pixels - wanted_mean) / wanted_std


def _statistics(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as ``[1, C, 1, 1]``; a grey network's are the mean over the channels, as when its images are prepared."""
    mean, std = (torch.tensor(values, device=device)[None, :, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (mean.mean(1, True), std.mean(1, True)) if preprocessing.input_size[0] == 1 else (mean, std)


def classifier_outputs(network: nn.Module, input_size: Sequence[int], *, role: str) -> int:
    """How many classes a network tells apart.

    Args:
        network: any module; it runs once, in eval mode, and is left in the modes it had.
        input_size: ``(C, H, W)``.
        role: what to call it in an error.

    Raises:
        InputError: where it is no image classifier, or does not take such an input.
    """
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with torch.no_grad(), eval_mode(network):
            outputs = network(torch.zeros(1, *input_size, device=first.device, dtype=first.dtype))
    except Exception as error:  # a network of somebody's own may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"The {role} does not take an input of {','.join(map(str, input_size))}: {reason}",
            where=f"the {role}, {type(network).__name__}",
            not_done="Nothing was trained.",
            to_do="Load it with the input size that it takes: chansurg.load(…, input_size=(C, H, W)).",
        ) from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise InputError(
            f"The {role} is no image classifier: it puts out {shape}, not [B, classes].",
            where=f"the {role}, {type(network).__name__}",
            not_done="Nothing was trained.",
            to_do="Train it in a loop of your own: the task's loss plus chansurg.recipe_loss(model, progress).",
        )
    return outputs.shape[1]


def match_teacher_classes(student: Sequence[str] | None, outputs: int, teacher: Sequence[str] | None, known: int) -> list[int] | None:
    """For each of the student's outputs, the teacher's output that stands for it; ``None`` where they are the same, one by one.

    By name where both networks know their classes (the teacher may know more of them), else by number.

    Args:
        student: names of the student's classes, where known.
        outputs: how many outputs the student has.
        teacher: names of the teacher's classes, where known.
        known: how many outputs the teacher has.

    Raises:
        InputError: where a class of the student's is not exactly one of the teacher's, or the numbers differ.
    """
    if student and teacher and len(student) == outputs and len(teacher) == known:
        missing = [name for name in student if teacher.count(name) != 1]
        if missing:
            raise InputError(
                f"The teacher has not exactly one class named {', '.join(map(repr, missing[:5]))}{', …' if len(missing) > 5 else ''}.",
                where="option --teacher",
                not_done="Nothing was trained.",
                to_do="Take a teacher that was trained for the student's classes.",
            )
        matched = [teacher.index(name) for name in student]
        return None if matched == list(range(known)) else matched
    if outputs != known:
        raise InputError(
            f"The teacher has {known} classes and the student {outputs}, and not both know the names of theirs.",
            where="option --teacher",
            not_done="Nothing was trained.",
            to_do="Take a teacher with the student's classes, or one whose file carries their names.",
        )
    return None
