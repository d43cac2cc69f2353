"""How quick is the trainer beside a plain loop written by hand? Timed in turn, in one run.

Run from the root of the checkout: ``python benchmarks/training_throughput.py [--rounds 5] [--device cuda]``. The small case is ResNet-20 on
CIFAR-10 (``../shared/data/cifar10.zip``, or pictures made for the purpose), the large one ResNet-18 on a folder of 224-pixel images that
the script makes. Both loops decode, keep, vary and normalise the same images with the same number of worker processes. Ratios over 1 mean
that the trainer is the quicker one. Processor time is given beside the time on the wall: on a machine that does other work as well, it is
the steadier of the two.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

import chansurg
from chansurg.surgery.architecture import IMAGENET_MEAN, IMAGENET_STD
from chansurg.surgery.delivery.timing import in_turn
from chansurg.surgery.images.classified import ClassifiedImages
from chansurg.surgery.training.loop import Training

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10.zip"
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def pictures(folder: Path, *, images: int, size: int) -> Path:
    """JPEGs of ten classes, smooth enough to decode as photographs do."""
    random = np.random.default_rng(0)
    for index in range(images):
        coarse = Image.fromarray(random.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        target = folder / "train" / f"class{index % 10}"
        target.mkdir(parents=True, exist_ok=True)
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(target / f"{index:05}.jpg", quality=90)
    return folder


class Stopwatch:
    """Seconds inside, on the wall and of the processor, worker processes that have ended included."""

    def __enter__(self) -> Stopwatch:
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall, self.processor = (now - then for now, then in zip(self._now(), self._start, strict=True))

    @staticmethod
    def _now() -> tuple[float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.perf_counter(), sum(use.ru_utime + use.ru_stime for use in used)


def by_hand(model: nn.Module, device: str, batches: Callable[[], Iterable[tuple[Tensor, Tensor]]], steps: int) -> Stopwatch:
    """A plain loop."""
    network = model.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    correct, loss_sum = torch.zeros((), device=device), torch.zeros((), device=device)
    with Stopwatch() as taken:
        for _, (images, labels) in zip(range(steps), batches(), strict=False):
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            outputs = network(images)
            loss = F.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(labels)
            correct += (outputs.argmax(1) == labels).sum()
    return taken


def kept_batches(data: Path, batch_size: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Small images: decoded once, kept, cropped and mirrored a batch at a time."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        images = ClassifiedImages(data, split="train", transform=v2.PILToTensor())
        pixels = torch.empty(len(images), 3, 32, 32, dtype=torch.uint8)
        labels, read = torch.empty(len(images), dtype=torch.int64), torch.zeros(len(images), dtype=torch.bool)
        across = torch.arange(32)
        for chosen in torch.randperm(len(images)).split(batch_size):
            for index in chosen[~read[chosen]].tolist():
                pixels[index], labels[index] = images[index]
                read[index] = True
            padded = F.pad(pixels[chosen], (4, 4, 4, 4))
            rows = torch.randint(9, (len(chosen), 1)) + across
            columns = torch.randint(9, (len(chosen), 1)) + torch.where(torch.rand(len(chosen), 1) < 0.5, across.flip(0), across)
            cut: Tensor = padded[torch.arange(len(chosen))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            yield (cut.contiguous().float() / 255 - MEAN) / STD, labels[chosen]

    return batches


def folder_batches(data: Path, batch_size: int, workers: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """Large images: torchvision's ImageFolder and transforms in PyTorch's DataLoader."""
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    images = datasets.ImageFolder(str(data / "train"), v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    return lambda: DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=torch.cuda.is_available())


def by_trainer(model: nn.Module, data: Path, *, device: str, batch_size: int, steps: int, workers: int) -> Stopwatch:
    """The trainer's own loop, from the first image to the last step; what comes before it is not a matter of throughput."""
    taken, run = Stopwatch(), Training.run

    def timed(training: Training) -> None:
        with taken:
            run(training)

    settings = {"device": device, "batch_size": batch_size, "workers": workers, "max_steps": steps, "epochs": 1, "lr": 0.01}
    with patch.object(Training, "run", timed):
        chansurg.finetune(model, data, **settings)
    return taken


def compare(name: str, images: int, rounds: int, trainer: Callable[[], Stopwatch], plain: Callable[[], Stopwatch]) -> None:
    """Print both throughputs and the ratios; the two take turns, and in turns begin. The first round only warms up."""
    ours, theirs = in_turn([trainer, plain], rounds=rounds)
    wall = sorted(b.wall / a.wall for a, b in zip(ours, theirs, strict=True))
    processor = sorted(b.processor / a.processor for a, b in zip(ours, theirs, strict=True))
    pace = [images / statistics.median(taken.wall for taken in seconds) for seconds in (ours, theirs)]
    print(
        f"{name}: trainer {pace[0]:.1f} images/s, by hand {pace[1]:.1f}; "
        f"ratio on the wall {statistics.median(wall):.3f} ({wall[0]:.3f} to {wall[-1]:.3f}), "
        f"of the processor {statistics.median(processor):.3f} ({processor[0]:.3f} to {processor[-1]:.3f}), {rounds} rounds",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="for the large images")
    parser.add_argument("--only", choices=("small", "large"), help="one of the two cases")
    parser.add_argument("--steps", type=int, default=40, help="steps a round on small images; on large ones a quarter of it")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        if options.only != "large":
            _small(options, Path(name) / "small")
        if options.only != "small":
            _large(options, Path(name) / "large")


def _small(options: argparse.Namespace, folder: Path) -> None:
    data = _training_only(CIFAR, folder) if CIFAR.exists() else pictures(folder, images=6000, size=32)
    network = chansurg.load("cifar/resnet20")
    compare(
        "ResNet-20, 32 pixels",
        128 * options.steps,
        options.rounds,
        lambda: by_trainer(network, data, device=options.device, batch_size=128, steps=options.steps, workers=0),
        lambda: by_hand(copy.deepcopy(network), options.device, kept_batches(data, 128), options.steps),
    )


def _large(options: argparse.Namespace, folder: Path) -> None:
    steps, workers = max(4, options.steps // 4), options.workers
    data = pictures(folder, images=16 * steps, size=256)
    network = chansurg.load("resnet18")
    network.fc = nn.Linear(512, 10)
    compare(
        "ResNet-18, 224 pixels",
        16 * steps,
        options.rounds,
        lambda: by_trainer(network, data, device=options.device, batch_size=16, steps=steps, workers=workers),
        lambda: by_hand(copy.deepcopy(network), options.device, folder_batches(data, 16, workers), steps),
    )


def _training_only(archive: Path, folder: Path) -> Path:
    """A part of CIFAR-10's training images on disk: without images for validation, nothing but training is timed."""
    images = ClassifiedImages(archive, split="train", transform=v2.PILToTensor())
    for name, position in images.samples[::8]:
        target = folder / "train" / images.classes[position] / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(images.tree.read(name))
    return folder


if __name__ == "__main__":
    main()
