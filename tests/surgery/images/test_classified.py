from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms import v2

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.images.classified import ClassifiedImages, batches, evaluation_transform, match_classes

SMALL = Preprocessing(input_size=(3, 16, 16))


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def fill(folder: Path, classes: tuple[str, ...] = ("cat", "ant", "dog"), each: int = 4) -> Path:
    for position, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            picture(100 * position + i).save(folder / name / f"{i}.png")
    return folder


def zipped(folder: Path, name: str = "data.zip", *, leading: str = "") -> Path:
    path = folder.parent / name
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, (Path(leading) / file.relative_to(folder)).as_posix())
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    fill(tmp_path / "data" / "val")
    fill(tmp_path / "data" / "train", each=2)
    return tmp_path / "data"


def open_images(path: Path, split: str = "val") -> ClassifiedImages:
    return ClassifiedImages(path, split=split, transform=evaluation_transform(SMALL))


def all_of(images: ClassifiedImages, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(batches(images, batch_size=5, **options))  # type: ignore[arg-type]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_folder_gives_what_torchvisions_image_folder_gives(tree: Path) -> None:
    ours = open_images(tree)
    theirs = datasets.ImageFolder(str(tree / "val"), transform=evaluation_transform(SMALL))
    assert ours.classes == theirs.classes == ["ant", "cat", "dog"]
    assert len(ours) == len(theirs) == 12
    for (image, label), (expected, expected_label) in zip(ours, theirs, strict=True):
        assert label == expected_label
        assert torch.equal(image, expected)


@pytest.mark.parametrize("leading", ["", "pictures"])
def test_zip_and_folder_are_the_same_data(tree: Path, leading: str) -> None:
    from_folder, from_zip = open_images(tree), open_images(zipped(tree, leading=leading))
    assert from_zip.classes == from_folder.classes
    assert torch.equal(all_of(from_zip)[0], all_of(from_folder)[0])
    assert torch.equal(all_of(from_zip)[1], all_of(from_folder)[1])


def test_bare_class_folders_are_taken_whole(tree: Path) -> None:
    assert len(open_images(tree / "train")) == 6
    assert len(open_images(zipped(tree / "train"))) == 6


def test_split_is_chosen_by_name(tree: Path) -> None:
    assert (len(open_images(tree, "val")), len(open_images(tree, "train"))) == (12, 6)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches_in_the_same_order(tree: Path, context: str) -> None:
    if context not in torch.multiprocessing.get_all_start_methods():
        context = "spawn"
    images = open_images(zipped(tree))
    alone = all_of(images)
    together = all_of(images, workers=2, context=context)
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


def test_hidden_files_and_files_that_are_no_images_are_left_out(tree: Path) -> None:
    (tree / "val" / ".cache").mkdir()
    (tree / "val" / "ant" / "notes.txt").write_text("no image")
    (tree / "val" / "ant" / ".0.png").write_bytes(b"resource fork")
    assert open_images(tree).classes == ["ant", "cat", "dog"]
    assert len(open_images(tree)) == 12
    assert len(open_images(zipped(tree))) == 12


def test_an_image_of_the_input_size_is_never_resampled() -> None:
    image = picture(3)
    tensor = evaluation_transform(Preprocessing(input_size=(3, 16, 16), resize=20))(image)
    mean, std = torch.tensor(SMALL.mean)[:, None, None], torch.tensor(SMALL.std)[:, None, None]
    pixels = (tensor * std + mean) * 255
    assert torch.allclose(pixels, torch.from_numpy(np.array(image)).permute(2, 0, 1).float(), atol=1e-3)


def test_other_sizes_are_resized_by_the_short_side_and_cropped_at_the_centre() -> None:
    image = picture(4, (60, 40))
    preprocessing = Preprocessing(input_size=(3, 16, 16), resize=20, interpolation="bicubic")
    steps = [
        v2.Resize(20, interpolation=v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(16),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(preprocessing.mean), list(preprocessing.std)),
    ]
    assert torch.equal(evaluation_transform(preprocessing)(image), v2.Compose(steps)(image))


def test_grey_networks_see_grey_images() -> None:
    assert evaluation_transform(Preprocessing(input_size=(1, 8, 8)))(picture(1)).shape == (1, 8, 8)
    with pytest.raises(InputError, match="4 input channels"):
        evaluation_transform(Preprocessing(input_size=(4, 8, 8)))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    picture(5).convert(mode).save(tmp_path / "a" / "x.tif")
    assert open_images(tmp_path)[0][0].shape == (3, 16, 16)


def test_classes_are_matched_by_name_where_names_are_known() -> None:
    assert match_classes(["ant", "cat"], ["dog", "cat", "ant"], 3, where="data") == [2, 1]
    assert match_classes(["ant", "cat"], None, 2, where="data") == [0, 1]
    assert match_classes(["n01", "n02"], ["tench", "goldfish"], 2, where="data") == [0, 1]


def test_classes_that_do_not_fit_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match="3 classes and the network has 10 outputs"):
        match_classes(["a", "b", "c"], None, 10, where="data")
    with pytest.raises(InputError, match="'cow'"):
        match_classes(["cat", "cow"], ["cat", "dog"], 2, where="data")
    with pytest.raises(InputError, match="'crane'"):
        match_classes(["cat", "crane"], ["cat", "crane", "crane"], 3, where="data")


def refused(path: Path, split: str = "val") -> str:
    with pytest.raises(InputError) as caught:
        open_images(path, split)
    assert str(path) in caught.value.where
    return str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent")


def test_a_missing_split_names_those_there_are(tree: Path) -> None:
    assert "Found: train, val" in refused(tree, "test")
    shutil.rmtree(tree / "val")
    assert "Found: train" in refused(tree)


def test_a_split_folder_is_never_taken_for_a_class(tree: Path) -> None:
    fill(tree / "extra")
    told = refused(tree, "test")
    assert "There is no folder 'test'" in told
    assert "Found: train, val." in told
    assert "extra" not in told
    assert refused(zipped(tree), "test").partition("where")[0] == told.partition("where")[0]
    assert open_images(tree, "extra").classes == ["ant", "cat", "dog"]


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    assert open_images(fill(tmp_path / "data", ("bus", "train"))).classes == ["bus", "train"]


def test_a_split_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    picture(1).save(tmp_path / "val" / "x.png")
    assert "no class folders" in refused(tmp_path)


def test_folders_and_zips_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(tmp_path / "empty")
    (tmp_path / "text" / "a").mkdir(parents=True)
    (tmp_path / "text" / "a" / "x.txt").write_text("no image")
    assert "no image in it" in refused(tmp_path / "text")
    assert "no image in it" in refused(zipped(tmp_path / "text", "text.zip"))


def test_an_empty_class_is_named(tree: Path) -> None:
    (tree / "val" / "bee").mkdir()
    assert "'val/bee' holds no image" in refused(tree)
    assert "'val/bee' holds no image" in refused(zipped(tree))


@pytest.mark.parametrize("kept", [0, 1, 400, -30])
def test_a_truncated_zip(tree: Path, kept: int) -> None:
    path = zipped(tree)
    path.write_bytes(path.read_bytes()[:kept])
    assert "zip file cannot be read" in refused(path)


def test_a_file_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("hello")
    assert "zip file cannot be read" in refused(tmp_path / "data.txt")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_an_unreadable_image_is_named_wherever_it_is_read(tree: Path, workers: int, damage: str) -> None:
    bad = tree / "val" / "cat" / "2.png"
    whole = bad.read_bytes()
    bad.write_bytes({"text": b"no image", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    for path in (tree, zipped(tree)):
        with pytest.raises(InputError, match="image cannot be read") as caught:
            all_of(open_images(path), workers=workers)
        assert "val/cat/2.png" in caught.value.where


def test_a_damaged_entry_of_a_zip_is_named(tree: Path) -> None:
    path = zipped(tree)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("val/cat/2.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 100 : start + 110] = b"\0" * 10
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="image cannot be read") as caught:
        all_of(open_images(path))
    assert "val/cat/2.png" in caught.value.where


def test_a_zip_is_read_without_unpacking(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tree)
    shutil.rmtree(tree)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "extract", never)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", never)
    all_of(open_images(path))
    assert os.listdir(path.parent) == ["data.zip"]


def test_compressed_zips_are_read(tree: Path) -> None:
    path = tree.parent / "packed.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((tree / "val").rglob("*.png")):
            buffer = io.BytesIO(file.read_bytes())
            archive.writestr(file.relative_to(tree).as_posix(), buffer.getvalue())
    assert torch.equal(all_of(open_images(path))[0], all_of(open_images(tree))[0])
