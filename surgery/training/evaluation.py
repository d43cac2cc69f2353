"""How well a network does on labelled images: top-1, top-5 and loss, exactly what a plain loop over the images gives."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.images.classified import batches, evaluation_transform, match_classes
from chansurg.surgery.images.library import open_images
from chansurg.surgery.modes import eval_mode

FEW_IMAGES = 2000


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over the images.

    Args:
        top1: images whose highest output is their class, in per cent.
        top5: images whose class is among the five highest outputs, in per cent. A network with fewer than five outputs has them all
            among the highest, so this is 100 there.
        loss: cross-entropy, the mean over the images.
        images: how many images there were.
        seconds: how long it took, reading and decoding included.
    """

    top1: float
    top5: float
    loss: float
    images: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput of the whole pass, reading and decoding included."""
        return self.images / self.seconds if self.seconds else float("inf")

    def as_json(self) -> dict[str, float | int]:
        """What ``evaluate --json`` prints; no clock times, so the same every time."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss, "images": self.images}


def evaluate(
    model: nn.Module,
    data: str | os.PathLike[str],
    *,
    split: str = "val",
    batch_size: int = 100,
    workers: int | None = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a classifier on a folder, or a zip, of class folders.

    Images are decoded as RGB and prepared as the network's record says. The network runs in eval mode and is left in the modes it had.

    Args:
        model: a network from ``[B, C, H, W]`` to ``[B, classes]``.
        data: class folders, with or without split folders above them, or a zip of that; or a data set of torchvision's that is on disk
            (``cifar10:FOLDER``).
        split: which split folder.
        batch_size: images a batch.
        workers: processes that read and decode; 0 reads in this one. ``None`` takes one a processor, at most 8, and none for few images.
        device: where to run; the network is moved there. ``None`` is where it is.
        progress: called with the images done and the images there are, after every batch.

    Raises:
        InputError: where the data cannot be read or does not fit the network.
        Refusal: where the network's outputs are not numbers.
    """
    record = record_of(model)
    images = open_images(data, split=split, transform=evaluation_transform(record.preprocessing))
    place, dtype = _place(model, device)
    with eval_mode(model), torch.inference_mode():
        probe = torch.zeros(1, *record.preprocessing.input_size, device=place, dtype=dtype)
        outputs = _outputs(model, probe)
        images.labels = match_classes(images.classes, record.class_names, outputs, where=images.where)
        start = time.perf_counter()
        tally = Tally()
        for batch, labels in batches(
            images, batch_size=batch_size, workers=default_workers(workers, len(images)), pin_memory=place.type == "cuda"
        ):
            tally.add(model(batch.to(place, dtype, non_blocking=True)), labels.to(place, non_blocking=True))
            if progress is not None:
                progress(tally.images, len(images))
    return tally.result(time.perf_counter() - start, where=images.where)


class Tally:
    """Counts, batch by batch, what an :class:`Evaluation` is made of."""

    def __init__(self) -> None:
        self.correct1 = self.correct5 = self.images = 0
        self.loss = 0.0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch: ``[B, classes]`` and ``[B]`` int64."""
        logits = logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.correct1 += int((logits.argmax(dim=1) == labels).sum())
        self.correct5 += int(ranked.any(dim=1).sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum").double())
        self.images += len(labels)

    def pooled(self, total: Callable[[Tensor], Tensor], device: torch.device) -> Tally:
        """The counts of all processes together; ``total`` sums a tensor over them."""
        counts = torch.tensor([self.correct1, self.correct5, self.images, self.loss], dtype=torch.float64, device=device)
        pooled = Tally()
        correct1, correct5, images, pooled.loss = total(counts).tolist()
        pooled.correct1, pooled.correct5, pooled.images = int(correct1), int(correct5), int(images)
        return pooled

    def result(self, seconds: float, *, where: str) -> Evaluation:
        """What it comes to.

        Raises:
            Refusal: where the outputs were not numbers.
        """
        if self.loss != self.loss:
            raise Refusal(
                "The network's outputs are not numbers (NaN).",
                where=f"{where}, {self.images} images",
                not_done="There is no accuracy to report.",
                to_do="Check its weights, or run it in float32 if it is in half precision.",
            )
        top1, top5 = (100 * correct / self.images for correct in (self.correct1, self.correct5))
        return Evaluation(top1, top5, self.loss / self.images, self.images, seconds)


def default_workers(workers: int | None, images: int) -> int:
    """How many processes decode that many images where nobody said: starting them costs more than decoding a few."""
    if workers is not None:
        return workers
    return 0 if images < FEW_IMAGES else min(os.cpu_count() or 1, 8)


def _place(model: nn.Module, device: str | torch.device | None) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype that the network runs in."""
    if device is not None:
        try:
            model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"The device {str(device)!r} cannot be used: {str(error).splitlines()[0]}",
                where="option --device",
                not_done="Nothing was evaluated.",
                to_do="Pass cpu, or leave the option away.",
            ) from error
    floating = (p for p in model.parameters() if p.is_floating_point())
    first = next(floating, torch.empty(0))
    return first.device, first.dtype


def _outputs(model: nn.Module, probe: Tensor) -> int:
    """How many classes the network tells apart; ``probe`` is ``[1, C, H, W]``."""
    size = ",".join(map(str, probe.shape[1:]))
    try:
        outputs = model(probe)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"The network does not take an input of {size}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=f"input size {size}",
            not_done="Nothing was evaluated.",
            to_do="Pass the size that it takes: --input-size H[,W] or C,H,W.",
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"The network is no image classifier: its output is {shape}, not [B, classes].",
            where=type(model).__name__,
            not_done="Nothing was evaluated.",
            to_do="Evaluate it in a loop of your own; only classifiers are evaluated here.",
        )
    return outputs.shape[1]
