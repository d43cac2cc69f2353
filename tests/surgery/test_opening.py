"""From what a user names to a network: files, names, and the messages where it is neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chansurg


def test_a_name_gives_fresh_weights_and_says_so() -> None:
    network = chansurg.load("cifar/resnet20")
    assert not network.training
    (note,) = chansurg.record_of(network).notes
    assert "fresh, untrained weights" in note
    again = chansurg.load("cifar/resnet20")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".ckpt", ".bin"])
def test_a_checkpoint_is_recognised_and_its_file_remembered(tmp_path: Path, suffix: str) -> None:
    network = chansurg.load("cifar/resnet20")
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, path)
    loaded = chansurg.load(path)
    record = chansurg.record_of(loaded)
    assert str(record.architecture) == "cifar/resnet20"
    assert record.file == path.name
    assert record.sha256
    assert not loaded.training
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_the_input_size_is_part_of_the_record() -> None:
    assert chansurg.record_of(chansurg.load("cifar/resnet20", input_size=(48,))).preprocessing.input_size == (3, 48, 48)
    with pytest.raises(chansurg.InputError, match="not an input size"):
        chansurg.load("cifar/resnet20", input_size=(0,))


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("missing.pth", {}, "no such file"),
        ("resnet5O", {}, "no architecture of that name"),
        ("missing", {"arch": "resnet18"}, "There is no file missing"),
        ("cifar/resnet20", {"arch": "resnet18"}, "The model is the architecture cifar/resnet20, and --arch names torchvision/resnet18"),
        ("folder.pth", {}, "directory"),
        ("cifar/resnet20", {"pretrained": True}, "no published weights"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, arguments: dict[str, object], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(chansurg.InputError, match=told):
        chansurg.load(model, **arguments)  # type: ignore[arg-type]


def test_a_file_brings_its_own_weights(tmp_path: Path) -> None:
    torch.save(chansurg.load("cifar/resnet20").state_dict(), tmp_path / "a.pth")
    with pytest.raises(chansurg.InputError, match="brings its own weights"):
        chansurg.load(tmp_path / "a.pth", pretrained=True)


@pytest.mark.parametrize(("model", "arch"), [("networks.small:tiny", "networks.small:tiny"), ("resnet18", "torchvision/resnet18")])
def test_an_architecture_may_be_named_twice(model: str, arch: str) -> None:
    network = chansurg.load(model, arch=arch)
    assert chansurg.record_of(network).architecture == chansurg.record_of(chansurg.load(model)).architecture
