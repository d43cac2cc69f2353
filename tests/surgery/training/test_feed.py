"""What a run sees, in which order and how varied, is a function of seed, epoch and index alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.images.augmentation import PRESETS, Augmentation, Cifar, ImageNet, augmentation
from chansurg.surgery.images.classified import evaluation_transform
from chansurg.surgery.images.library import LabelledImages, open_images
from chansurg.surgery.training.image_feed import ImageFeed, in_order
from chansurg.surgery.training.ordering import Course
from chansurg.surgery.training.seeding import seeds_of
from chansurg.surgery.training.settings import Settings

MakeTree = Callable[..., Path]
SIZE = Preprocessing(input_size=(3, 16, 16))
CPU = torch.device("cpu")


def images(tree: Path, split: str = "train") -> LabelledImages:
    return open_images(tree, split=split, transform=evaluation_transform(SIZE), whole=False)


def course(settings: Settings, number: int, processes: int = 1) -> list[list[tuple[int, int]]]:
    shares = [list(Course.of(settings, number, processes=processes, process=index).batches(0)) for index in range(processes)]
    return [[key for share in shares for key in share[at]] for at in range(len(shares[0]))]


def flat(settings: Settings, number: int, processes: int = 1) -> list[tuple[int, int]]:
    return [*chain.from_iterable(course(settings, number, processes))]


def test_an_epoch_sees_each_image_once_and_another_order_every_time() -> None:
    batches = course(Settings(epochs=3, batch_size=6), 24)
    epochs = [[index for batch in batches[at : at + 4] for _, index in batch] for at in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [key[0] for batch in batches for key in batch] == [0] * 24 + [1] * 24 + [2] * 24


def test_the_order_does_not_depend_on_batch_size_or_processes() -> None:
    seen = [flat(Settings(epochs=2, batch_size=size), 24, processes) for size, processes in ((24, 1), (4, 1), (12, 2), (12, 3))]
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert seen[0] != flat(Settings(epochs=2, batch_size=24, seed=1), 24)


def test_a_course_is_taken_up_at_any_step() -> None:
    whole = Course.of(Settings(epochs=3, batch_size=4, accumulate=2), 26)
    assert (whole.steps_an_epoch, whole.steps) == (3, 9)
    everything = list(whole.batches(0))
    assert len(everything) == 18
    for step in range(10):
        assert list(whole.batches(step)) == everything[2 * step :]


def test_few_images_make_one_step_and_max_steps_shortens_a_run() -> None:
    assert Course.of(Settings(epochs=2, batch_size=128, accumulate=4), 10).steps == 2
    assert Course.of(Settings(epochs=2, batch_size=5, max_steps=3), 10).steps == 3
    with pytest.raises(InputError, match="shared evenly among 2"):
        Course.of(Settings(batch_size=5), 10, processes=2)


def by_hand(pixels: Tensor, seed: np.uint64) -> Tensor:
    """One image, padded, cropped and mirrored with torchvision's own functions."""
    down, right, mirrored = (int((int(seed) >> 16 * which & 0xFFFF) * below >> 16) for which, below in ((0, 5), (1, 5), (2, 2)))
    cropped = functional.crop(functional.pad(pixels, [2, 2, 2, 2]), down, right, 16, 16)
    return functional.horizontal_flip(cropped) if mirrored else cropped


def test_a_batch_is_varied_as_its_images_are_one_by_one() -> None:
    pixels = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seeds = seeds_of(np.arange(64), 3, 1)
    varied = Cifar(SIZE).vary(pixels, seeds)
    assert all(torch.equal(image, by_hand(original, seed)) for image, original, seed in zip(varied, pixels, seeds, strict=True))
    drawn = [{int((int(seed) >> 16 * which & 0xFFFF) * below >> 16) for seed in seeds} for which, below in ((0, 5), (1, 5), (2, 2))]
    assert drawn == [set(range(5)), set(range(5)), {0, 1}]


@pytest.mark.parametrize("preset", PRESETS)
def test_kept_decoded_anew_and_read_by_workers_is_the_same(preset: str, tree: Path) -> None:
    which = [[(epoch, index) for index in range(start, start + 5)] for epoch in (0, 1) for start in (3, 11)]
    seen = []
    for kept_bytes, workers in ((2**30, 0), (0, 0), (0, 2)):
        feed = ImageFeed(images(tree), PRESETS[preset](SIZE), SIZE, device=CPU, seed=4, workers=workers, kept_bytes=kept_bytes)
        seen.append([*feed.batches(which)])
    for batches in seen[1:]:
        for (pixels, labels), (expected, expected_labels) in zip(batches, seen[0], strict=True):
            assert torch.equal(pixels, expected)
            assert torch.equal(labels, expected_labels)
    same = torch.equal(seen[0][0][0], seen[0][2][0])
    assert same == (preset == "none")


def test_validation_sees_what_evaluate_sees(tree: Path) -> None:
    split = images(tree, "val")
    feed = ImageFeed(split, Augmentation(SIZE), SIZE, device=CPU)
    pixels, labels = (torch.cat(parts) for parts in zip(*feed.batches(in_order(len(split), 4)), strict=True))
    assert torch.equal(pixels, torch.stack([split[index][0] for index in range(len(split))]))
    assert labels.tolist() == [split[index][1] for index in range(len(split))]


def test_the_preset_follows_the_size_of_the_input() -> None:
    assert isinstance(augmentation(None, Preprocessing(input_size=(3, 32, 32))), Cifar)
    assert isinstance(augmentation(None, Preprocessing(input_size=(3, 224, 224))), ImageNet)
    assert type(augmentation("none", Preprocessing(input_size=(3, 224, 224)))) is Augmentation


def test_torchvisions_data_sets_by_name(tmp_path: Path) -> None:
    import gzip

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, number in (("train", 6), ("t10k", 4)):
        pixels = np.arange(number * 784, dtype=np.uint32).astype(np.uint8)
        header = b"".join(value.to_bytes(4, "big") for value in (0x803, number, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(index % 10 for index in range(number))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"".join(v.to_bytes(4, "big") for v in (0x801, number)) + labels)
        for file in raw.glob(f"{split}*ubyte"):
            (file.with_suffix(".gz")).write_bytes(gzip.compress(file.read_bytes()))
    transform = evaluation_transform(SIZE)
    training = open_images(f"mnist:{tmp_path}", split="train", transform=transform)
    assert (len(training), len(open_images(f"mnist:{tmp_path}", split="val", transform=transform))) == (6, 4)
    assert len(training.classes) == 10
    assert training[3][0].shape == (3, 16, 16)
    assert training[3][1] == 3
    with pytest.raises(InputError, match="CIFAR10 cannot be read"):
        open_images(f"cifar10:{tmp_path}", split="train", transform=transform)
