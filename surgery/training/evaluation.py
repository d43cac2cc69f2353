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
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.training.data import ClassifiedImages, batches, evaluation_transform, match_classes

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
        data: class folders, with or without split folders above them, or a zip of that.
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
    images = ClassifiedImages(data, split=split, transform=evaluation_transform(record.preprocessing))
    place, dtype = _place(model, device)
    correct1 = correct5 = done = 0
    loss = 0.0
    with eval_mode(model), torch.inference_mode():
        probe = torch.zeros(1, *record.preprocessing.input_size, device=place, dtype=dtype)
        outputs = _outputs(model, probe)
        images.labels = match_classes(images.classes, record.class_names, outputs, where=str(images.tree.path))
        start = time.perf_counter()
        for batch, labels in batches(
            images, batch_size=batch_size, workers=_workers(workers, len(images)), pin_memory=place.type == "cuda"
        ):
            target = labels.to(place, non_blocking=True)
            logits = model(batch.to(place, dtype, non_blocking=True)).float()
            ranked = logits.topk(min(5, outputs), dim=1).indices == target[:, None]
            correct1 += int((logits.argmax(dim=1) == target).sum())
            correct5 += int(ranked.any(dim=1).sum())
            loss += float(F.cross_entropy(logits, target, reduction="sum").double())
            done += len(target)
            if progress is not None:
                progress(done, len(images))
        seconds = time.perf_counter() - start
    if loss != loss:
        raise Refusal(
            "The network's outputs are not numbers (NaN).",
            where=f"{images.tree.path}, {done} images",
            not_done="There is no accuracy to report.",
            to_do="Check its weights, or run it in float32 if it is in half precision.",
        )
    return Evaluation(100 * correct1 / done, 100 * correct5 / done, loss / done, done, seconds)


def _workers(workers: int | None, images: int) -> int:
    """Starting processes costs more than decoding a few images."""
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
