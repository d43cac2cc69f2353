"""Images without labels: which are taken, in what order, and what they become."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.images.classified import evaluation_transform
from chansurg.surgery.images.unlabelled import open_unlabelled

SMALL = Preprocessing(input_size=(3, 8, 8))


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    for split, first in (("train", 0), ("val", 100)):
        for number, name in enumerate(("ant", "bee", "cow")):
            for index in range(8):
                save(tmp_path / "data" / split / name / f"{index}.png", first + 10 * number + index)
    return tmp_path / "data"


def test_every_class_of_the_training_images_gives_its_share(splits: Path) -> None:
    images = open_unlabelled(splits, SMALL, samples=12, seed=0)
    assert len(set(images.names)) == len(images) == 12
    assert {name: sum(found.startswith(f"train/{name}/") for found in images.names) for name in ("ant", "bee", "cow")} == {
        "ant": 4,
        "bee": 4,
        "cow": 4,
    }
    assert images.names != sorted(images.names)
    assert images.found == 24


@pytest.mark.parametrize(("count", "samples"), [(3, 2), (7, 5), (24, 23), (1, 1)])
def test_no_image_is_taken_twice(count: int, samples: int, tmp_path: Path) -> None:
    for index in range(count):
        save(tmp_path / f"{index:02}.png", index)
    for seed in range(20):
        assert len(set(open_unlabelled(tmp_path, SMALL, samples, seed).names)) == samples


def test_the_seed_decides_which_and_in_which_order(splits: Path) -> None:
    first, again, other = (open_unlabelled(splits, SMALL, 10, seed).names for seed in (1, 1, 2))
    assert first == again != other


def test_batches_are_what_evaluation_sees(splits: Path) -> None:
    images = open_unlabelled(splits, SMALL, 5, 0)
    transform = evaluation_transform(SMALL)
    expected = torch.stack([transform(Image.open(splits / name).convert("RGB")) for name in images.names])
    batches = list(images.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(batches), expected)
    assert all(torch.equal(one, other) for one, other in zip(batches, images.batches(2), strict=True))


def test_a_flat_folder_a_wrapped_zip_and_folders_without_splits_serve(tmp_path: Path) -> None:
    flat, loose = tmp_path / "flat", tmp_path / "loose"
    for index in range(4):
        save(flat / f"{index}.png", index)
        save(loose / f"kind{index % 2}" / "deeper" / f"{index}.png", index)
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for index in range(4):
            out.write(flat / f"{index}.png", f"top/train/c{index}/{index}.png")
        out.write(flat / "0.png", "top/val/c0/0.png")
    assert sorted(open_unlabelled(flat, SMALL).names) == [f"{index}.png" for index in range(4)]
    assert len(open_unlabelled(loose, SMALL)) == 4
    assert sorted(open_unlabelled(archive, SMALL).names) == [f"top/train/c{index}/{index}.png" for index in range(4)]


@pytest.mark.parametrize(
    ("folders", "taken"),
    [
        (("a/b/c/train", "a/b/c/val"), "a/b/c/train"),
        (("images/train", "images/val", "labels"), "images/train"),
        (("Train", "Test"), "Train"),
        (("kept", "deep/down/valid"), "kept"),
        (("train/test", "val/train"), "train/test"),
    ],
)
def test_images_for_validation_are_left_out_wherever_they_lie(folders: tuple[str, ...], taken: str, tmp_path: Path) -> None:
    for number, folder in enumerate(folders):
        save(tmp_path / folder / "ant" / "0.png", number)
    assert open_unlabelled(tmp_path, SMALL).names == [f"{taken}/ant/0.png"]


def test_too_few_images_are_all_used_and_it_says_so(splits: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        images = open_unlabelled(splits, SMALL, 1000, 0)
    assert len(images) == 24
    assert "24 images" in caplog.text
    assert "1000" in caplog.text


def test_images_for_validation_alone_are_refused(splits: Path, tmp_path: Path) -> None:
    (splits / "train").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="val, which results are judged by"):
        open_unlabelled(splits, SMALL)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no image"):
        open_unlabelled(tmp_path / "nothing", SMALL)
    with pytest.raises(InputError, match="--samples"):
        open_unlabelled(splits, SMALL, 0)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", 0)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError) as raised:
        list(open_unlabelled(tmp_path, SMALL).batches(8))
    assert "bad.png" in raised.value.where


def test_every_eighth_is_held_out_and_decoded_images_are_kept(splits: Path) -> None:
    images = open_unlabelled(splits, SMALL, 20, 0)
    fitted, held = images.divided()
    assert (len(fitted), len(held)) == (18, 2)
    assert sorted(fitted.names + held.names) == sorted(images.names)
    whole = torch.cat(list(images.batches(20)))
    (splits / "train").rename(splits / "gone")
    torch.testing.assert_close(torch.cat(list(held.batches(4))), whole[[7, 15]])
    alone, judged = images.first(1).divided()
    assert alone.names == judged.names == images.names[:1]


def test_a_library_data_set_gives_its_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        classes = ("zero", "one")

        def __init__(self, root: str, download: bool, train: bool) -> None:
            self.targets = [0, 1, 0, 1] if train else [1]

        def __len__(self) -> int:
            return len(self.targets)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (8, 8), index), self.targets[index]

    monkeypatch.setattr("torchvision.datasets.MNIST", Stub)
    images = open_unlabelled(f"mnist:{tmp_path}", SMALL, 3)
    assert len(images) == 3
    assert next(images.batches(3)).shape == (3, 3, 8, 8)


@pytest.mark.parametrize(("folder", "told"), [("val", True), ("train", False), ("", False)])
def test_a_folder_named_like_what_results_are_judged_by_is_taken_with_a_warning(
    splits: Path, folder: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    images = open_unlabelled(splits / folder, SMALL, samples=6)
    assert len(images) == 6
    assert ("results are judged by" in caplog.text) is told
