"""History, and the way back to exactly the file that a conversion started from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import chansurg
from chansurg.surgery.reading.header import file_sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``a.pth`` -> ``b.safetensors`` -> ``c.safetensors``."""
    folder = tmp_path_factory.mktemp("lineage")
    torch.save(chansurg.load("cifar/resnet20").state_dict(), folder / "a.pth")
    first = chansurg.convert(chansurg.load(folder / "a.pth"), "pix", mode="downscale", zeta=2)
    chansurg.save(first, folder / "b.safetensors")
    second = chansurg.convert(chansurg.load(folder / "b.safetensors"), "pix", mode="downscale", zeta=4)
    chansurg.save(second, folder / "c.safetensors")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    for file in made.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def test_history_tells_each_step_and_the_file_it_started_from(folder: Path) -> None:
    record = chansurg.history(folder / "c.safetensors")
    assert str(record.architecture) == "cifar/resnet20"
    assert [(e.recipe, e.options["zeta"]) for e in record.journal] == [("pix", 2), ("pix", 4)]
    assert [(e.parent_file, e.parent_sha256) for e in record.journal] == [
        (name, file_sha256(folder / name)) for name in ("a.pth", "b.safetensors")
    ]
    assert record.journal[0].after == record.journal[1].before
    assert record.journal[1].after["params"] < record.journal[1].before["params"]
    assert record.file == "c.safetensors"


def test_a_plain_checkpoint_has_no_history(folder: Path) -> None:
    with pytest.raises(chansurg.InputError):
        chansurg.history(folder / "a.pth")


def test_undo_step_by_step_finds_the_files_beside(folder: Path) -> None:
    assert chansurg.undo(folder / "c.safetensors") == folder / "b.safetensors"
    assert chansurg.undo(folder / "b.safetensors") == folder / "a.pth"
    with pytest.raises(chansurg.InputError):
        chansurg.undo(folder / "a.pth")


def test_the_parent_is_known_by_its_bytes_and_not_by_its_name(folder: Path) -> None:
    (folder / "b.safetensors").rename(folder / "renamed.safetensors")
    shutil.copy(folder / "c.safetensors", folder / "b.safetensors")  # another file under the old name
    (folder / "empty.safetensors").touch()
    assert chansurg.undo(folder / "c.safetensors") == folder / "renamed.safetensors"


def test_a_changed_parent_is_not_the_parent(folder: Path) -> None:
    with (folder / "b.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(chansurg.Refusal, match="not beside it") as refused:
        chansurg.undo(folder / "c.safetensors")
    assert "--base" in refused.value.to_do


def test_a_named_base_must_be_that_very_file(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "b.safetensors").rename(elsewhere / "x.bin")
    assert chansurg.undo(folder / "c.safetensors", base=elsewhere / "x.bin") == elsewhere / "x.bin"
    with pytest.raises(chansurg.InputError, match="is not the file"):
        chansurg.undo(folder / "c.safetensors", base=folder / "a.pth")
    with pytest.raises(chansurg.InputError):
        chansurg.undo(folder / "c.safetensors", base=folder / "missing")


def test_a_copy_of_the_parent_is_written_whole_and_exact(folder: Path) -> None:
    expected = (folder / "b.safetensors").read_bytes()
    assert chansurg.undo(folder / "c.safetensors", output=folder / "back.safetensors") == folder / "back.safetensors"
    assert (folder / "back.safetensors").read_bytes() == expected
    chansurg.undo(folder / "c.safetensors", output=folder / "b.safetensors")
    assert (folder / "b.safetensors").read_bytes() == expected
    with pytest.raises(chansurg.InputError, match="does not exist"):
        chansurg.undo(folder / "c.safetensors", output=folder / "no" / "back")


def test_conversions_in_memory_lead_back_to_the_file_that_the_first_started_from(folder: Path) -> None:
    network = chansurg.load(folder / "a.pth")
    for zeta in (2, 4):
        chansurg.convert(network, "pix", mode="downscale", zeta=zeta, inplace=True)
    chansurg.save(network, folder / "d.safetensors")
    assert [e.parent_file for e in chansurg.history(folder / "d.safetensors").journal] == ["a.pth", None]
    assert chansurg.undo(folder / "d.safetensors") == folder / "a.pth"
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(chansurg.load(folder / "d.safetensors")(x), network(x))


def test_nothing_to_undo(folder: Path) -> None:
    chansurg.save(chansurg.load("cifar/resnet20"), folder / "plain.safetensors")
    with pytest.raises(chansurg.InputError, match="Nothing was done"):
        chansurg.undo(folder / "plain.safetensors")
    fresh = chansurg.convert(chansurg.load("cifar/resnet20"), "pix", mode="downscale")
    chansurg.save(fresh, folder / "fresh.safetensors")
    with pytest.raises(chansurg.Refusal, match="not converted from a file"):
        chansurg.undo(folder / "fresh.safetensors")


def test_training_after_a_conversion_is_not_thrown_away_unasked(folder: Path) -> None:
    network = chansurg.load(folder / "c.safetensors")
    with torch.no_grad():
        network.linear.bias.add_(1e-3)
    chansurg.save(network, folder / "trained.safetensors")
    with pytest.raises(chansurg.Refusal, match="trained since") as told:
        chansurg.undo(folder / "trained.safetensors")
    assert "--discard-training" in told.value.to_do
    assert chansurg.undo(folder / "trained.safetensors", discard_training=True) == folder / "b.safetensors"


def test_a_network_that_was_trained_before_a_conversion_names_no_parent(folder: Path) -> None:
    network = chansurg.load(folder / "b.safetensors")
    with torch.no_grad():
        network.linear.weight.mul_(1.5)
    converted = chansurg.convert(network, "pix", mode="downscale", zeta=4)
    chansurg.save(converted, folder / "d.safetensors")
    last = chansurg.history(folder / "d.safetensors").journal[-1]
    assert (last.untouched, last.parent_file, last.parent_sha256) == (False, None, None)
    with pytest.raises(chansurg.Refusal, match="trained since"):
        chansurg.undo(folder / "d.safetensors")


def test_conversions_in_memory_one_after_the_other_are_untouched(folder: Path) -> None:
    first = chansurg.convert(chansurg.load(folder / "a.pth"), "pix", mode="downscale", zeta=2)
    second = chansurg.convert(first, "pix", mode="downscale", zeta=4)
    chansurg.save(second, folder / "e.safetensors")
    assert [entry.untouched for entry in chansurg.history(folder / "e.safetensors").journal] == [True, True]
    assert chansurg.undo(folder / "e.safetensors") == folder / "a.pth"
