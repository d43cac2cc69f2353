"""How quick is the trainer beside a plain loop written by hand? Timed in turn, in one run.

Run from the root of the checkout: ``python benchmarks/training_throughput.py [--rounds 5] [--device cuda]``. The small case is ResNet-20 on
CIFAR-10 (``../shared/data/cifar10.zip``, or pictures made for the purpose), the large one ResNet-18 on a folder of 224-pixel images that
the script makes. Both loops decode, keep, vary and normalise the same images with the same number of worker processes. Ratios over 1 mean
that the trainer is the quicker one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
from chansurg.surgery.training.data import ClassifiedImages
from chansurg.surgery.training.loop import Standing

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


def by_hand(model: nn.Module, device: str, batches: Callable[[], object], steps: int) -> float:
    """Images a second of a plain loop."""
    network = model.to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    correct, loss_sum, done = torch.zeros((), device=device), torch.zeros((), device=device), 0
    start = time.perf_counter()
    for _, (images, labels) in zip(range(steps), batches(), strict=False):  # type: ignore[call-overload]
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        outputs = network(images)
        loss = F.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels)
        correct += (outputs.argmax(1) == labels).sum()
        done += len(labels)
    float(loss_sum), float(correct)
    return done / (time.perf_counter() - start)


def kept_batches(data: Path, batch_size: int) -> Callable[[], object]:
    """Small images: decoded once, kept, cropped and mirrored a batch at a time."""

    def batches() -> object:
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


def folder_batches(data: Path, batch_size: int, workers: int) -> Callable[[], object]:
    """Large images: torchvision's ImageFolder and transforms in PyTorch's DataLoader."""
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    images = datasets.ImageFolder(str(data / "train"), v2.Compose([*steps, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    return lambda: DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True, pin_memory=torch.cuda.is_available())


def by_trainer(model: nn.Module, data: Path, *, device: str, batch_size: int, steps: int, workers: int) -> float:
    """Images a second of the trainer, as it says itself: everything from the first image to the last step."""
    ends: list[Standing] = []
    chansurg.finetune(
        model,
        data,
        device=device,
        batch_size=batch_size,
        epochs=1,
        max_steps=steps,
        val_every=9,
        lr=0.01,
        workers=workers,
        progress=lambda now: ends.append(now) if now.metrics is not None else None,
    )
    return float((ends[-1].metrics or {})["images_per_second"])


def compare(name: str, rounds: int, trainer: Callable[[], float], plain: Callable[[], float]) -> None:
    """Print both throughputs and the median of their ratios; the two take turns, and in turns begin."""
    ours, theirs = [], []
    for turn in range(rounds + 1):
        pair = {}
        for loop in (trainer, plain) if turn % 2 else (plain, trainer):
            pair[loop] = loop()
        if turn:
            ours.append(pair[trainer])
            theirs.append(pair[plain])
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name:>22}: trainer {statistics.median(ours):8.1f} images/s, by hand {statistics.median(theirs):8.1f}; "
        f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f} in {rounds} rounds)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="for the large images")
    parser.add_argument("--steps", type=int, default=40, help="steps a round on small images; on large ones a quarter of it")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = _training_only(CIFAR, folder / "cifar") if CIFAR.exists() else pictures(folder / "small", images=6000, size=32)
        resnet20 = chansurg.load("cifar/resnet20")
        compare(
            "ResNet-20, 32 pixels",
            options.rounds,
            lambda: by_trainer(resnet20, small, device=options.device, batch_size=128, steps=options.steps, workers=0),
            lambda: by_hand(chansurg.load("cifar/resnet20"), options.device, kept_batches(small, 128), options.steps),
        )
        steps = max(4, options.steps // 4)
        large = pictures(folder / "large", images=16 * steps, size=256)
        resnet18 = nn.Module.train(chansurg.load("resnet18"))
        resnet18.fc = nn.Linear(512, 10)
        compare(
            "ResNet-18, 224 pixels",
            options.rounds,
            lambda: by_trainer(resnet18, large, device=options.device, batch_size=16, steps=steps, workers=options.workers),
            lambda: by_hand(resnet18, options.device, folder_batches(large, 16, options.workers), steps),
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
