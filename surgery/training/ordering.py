"""In which order a run sees which images: a function of the seed and the position alone, so any position can be taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.seeding import seed_of
from chansurg.surgery.training.settings import Settings

Key = tuple[int, int]
"""An epoch and the index of an image in it: everything that its augmentation depends on, beside the seed."""

_ORDER = 0x0D


def order(seed: int, epoch: int, images: int) -> Tensor:
    """The images of one epoch in the order they are seen: ``[images]`` int64."""
    generator = torch.Generator().manual_seed(seed_of(_ORDER, seed, epoch))
    return torch.randperm(images, generator=generator)


@dataclass(frozen=True)
class Course:
    """How a run is divided into epochs, steps and batches, for one process of several.

    An epoch is as many whole steps as its images are enough for, at least one; the few images left over are other ones in every epoch.

    Args:
        images: training images.
        batch_size: images a batch, over all processes.
        accumulate: batches a step.
        epochs: passes over the data.
        max_steps: the run is not longer.
        seed: of the order.
        processes: how many share each batch.
        process: which of them this is.
    """

    images: int
    batch_size: int
    accumulate: int
    epochs: int
    max_steps: int | None = None
    seed: int = 0
    processes: int = 1
    process: int = 0

    @classmethod
    def of(cls, settings: Settings, images: int, *, processes: int = 1, process: int = 0) -> Course:
        """The course that the settings describe.

        Raises:
            InputError: where a batch cannot be shared evenly among the processes, or there are fewer images than processes.
        """
        size = settings.batch_size
        if size % processes or images < processes:
            raise InputError(
                f"A batch of {min(size, images)} images cannot be shared evenly among {processes} processes.",
                where="option --batch-size",
                not_done="Nothing was trained.",
                to_do=f"Pass a batch size that {processes} divides; it counts the images of all processes together.",
            )
        size = min(size, images - images % processes)
        return cls(images, size, settings.accumulate, settings.epochs, settings.max_steps, settings.seed, processes, process)

    @property
    def batches_a_step(self) -> int:
        """Batches whose gradients are averaged for one optimizer step."""
        return min(self.accumulate, self.images // self.batch_size)

    @property
    def images_a_step(self) -> int:
        """Images that one optimizer step sees, over all processes."""
        return self.batches_a_step * self.batch_size

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps of one pass over the data."""
        return self.images // self.images_a_step

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        whole = self.epochs * self.steps_an_epoch
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the run, is over after this many steps."""
        return step % self.steps_an_epoch == 0 or step == self.steps

    def batches(self, first: int) -> Iterator[list[Key]]:
        """This process's share of every batch from step ``first`` to the end of the run."""
        share = self.batch_size // self.processes
        for epoch in range(first // self.steps_an_epoch, -(-self.steps // self.steps_an_epoch)):
            images = order(self.seed, epoch, self.images).tolist()
            start = epoch * self.steps_an_epoch
            for step in range(max(first, start), min(self.steps, start + self.steps_an_epoch)):
                for batch in range(self.batches_a_step):
                    at = (step - start) * self.images_a_step + batch * self.batch_size + self.process * share
                    yield [(epoch, index) for index in images[at : at + share]]
