"""Names become networks; wrong names become errors that teach."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading import builders
from chansurg.surgery.reading.builders import build, fresh, parse_architecture, preprocessing_of, torchvision_names
from chansurg.surgery.reading.cifar import NAMES


def test_names() -> None:
    assert parse_architecture("resnet50") == Architecture("torchvision", "resnet50")
    assert parse_architecture("torchvision/resnet50") == Architecture("torchvision", "resnet50")
    assert parse_architecture("cifar/resnet20-b") == Architecture("cifar", "resnet20-b")
    assert parse_architecture("my.nets:small") == Architecture("factory", "my.nets:small")
    assert parse_architecture("fasterrcnn_resnet50_fpn").source == "torchvision"
    for text in ("resnet50", "cifar/resnet1202", "my.nets:small"):
        assert parse_architecture(str(parse_architecture(text))) == parse_architecture(text)


def test_names_of_timm() -> None:
    pytest.importorskip("timm")
    assert parse_architecture("timm/resnet50") == Architecture("timm", "resnet50")
    assert parse_architecture("convnextv2_atto") == Architecture("timm", "convnextv2_atto")


@pytest.mark.parametrize(
    ("text", "near"), [("resnet51x", "resnet50"), ("torchvision/resnt50", "resnet50"), ("cifar/resnet21", "cifar/resnet20"), ("", "")]
)
def test_unknown_names_are_told_the_nearest(text: str, near: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_architecture(text)
    assert near in caught.value.to_do


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert not builders.timm_is_installed()
    for failing in (lambda: parse_architecture("timm/resnet50"), lambda: build(Architecture("timm", "resnet50"))):
        with pytest.raises(InputError, match="timm") as caught:
            failing()
        assert "pip install" in caught.value.to_do
    with pytest.raises(InputError):
        parse_architecture("resnet51x")


@pytest.mark.parametrize("name", torchvision_names())
def test_all_of_torchvision_builds_on_meta(name: str) -> None:
    model = build(Architecture("torchvision", name))
    assert not model.training
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for name in ("regnet_y_400mf", "swin_t", "googlenet"):
        build(Architecture("torchvision", name))
        build(Architecture("torchvision", name), device="cpu", initialise=False)
        fresh(Architecture("torchvision", name))
    assert torch.equal(before, torch.get_rng_state())


class Picky(nn.Module):
    """Draws until it likes what it sees, as some initialisers do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        nn.init.zeros_(self.linear.weight)
        while not bool((self.linear.weight.abs() > 1e-3).all()):
            nn.init.normal_(self.linear.weight)


def test_skipping_initialisers_ends_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("picky_networks")
    module.Picky = Picky  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "picky_networks", module)
    for _ in range(3):
        build(Architecture("factory", "picky_networks:Picky"), device="cpu", initialise=False)
    assert nn.init.trunc_normal_(torch.full((1000,), 9.0), std=0.1).abs().max() < 1
    matrix = nn.init.orthogonal_(torch.empty(4, 4))
    assert torch.allclose(matrix @ matrix.T, torch.eye(4), atol=1e-5)


def test_fresh_weights_are_the_librarys_and_follow_the_seed() -> None:
    architecture = Architecture("torchvision", "resnet18", {"num_classes": 3})
    torch.manual_seed(5)
    expected = models.resnet18(num_classes=3).state_dict()
    found = fresh(architecture, seed=5).state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not torch.equal(fresh(architecture, seed=6).state_dict()["conv1.weight"], expected["conv1.weight"])


def test_pretrained_without_network_teaches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(InputError, match="unreachable") as caught:
        fresh(Architecture("torchvision", "resnet18"), pretrained=True)
    assert "download" in caught.value.to_do
    with pytest.raises(InputError, match="no published weights"):
        fresh(Architecture("cifar", "resnet20"), pretrained=True)


def test_published_weights_bring_their_normalisation() -> None:
    model = build(builders.published(Architecture("torchvision", "googlenet")))
    assert model.transform_input is True
    assert build(Architecture("torchvision", "googlenet")).transform_input is False


def test_a_factory_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"nets_{random.randrange(10**9)}"
    (tmp_path / f"{module}.py").write_text(
        "from torch import nn\n"
        "def small(num_classes=4):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3, num_classes))\n"
        "def fails():\n    raise ValueError('on purpose')\n"
        "def wrong():\n    return 3\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    model = build(Architecture("factory", f"{module}:small", {"num_classes": 9}))
    assert isinstance(model, nn.Sequential)
    assert model[1].weight.shape == (9, 3)
    assert sys.path == path
    for attribute, told in (("fails", "on purpose"), ("wrong", "not a torch.nn.Module"), ("number", "int"), ("smal", "no 'smal'")):
        with pytest.raises(InputError, match=told):
            build(Architecture("factory", f"{module}:{attribute}"))
    with pytest.raises(InputError, match="classes_of"):
        build(Architecture("factory", f"{module}:small", {"classes_of": 9}))


def test_a_factory_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"broken_{random.randrange(10**9)}"
    (tmp_path / f"{module}.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name, told in ((f"{module}:f", "ZeroDivisionError"), ("not_there_at_all:f", "not_there_at_all"), (":f", "factory")):
        with pytest.raises(InputError, match=told):
            build(Architecture("factory", name))


@pytest.mark.parametrize("name", [name for name in NAMES if "1202" not in name])
def test_cifar_networks_have_the_papers_size(name: str) -> None:
    # Table 6 of the ResNet paper, in millions of parameters; projections add a little.
    papers = {"20": 0.27, "32": 0.46, "44": 0.66, "56": 0.85, "110": 1.7}
    model = build(Architecture("cifar", name))
    counted = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    depth = name.removeprefix("resnet").removesuffix("-b")
    assert counted == pytest.approx(papers[depth], abs=0.04)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and getattr(m, "kernel_size", None) != (1, 1)]
    assert len(layers) == int(depth)


def test_cifar_shortcuts_subsample_and_pad_on_both_sides() -> None:
    shortcut = fresh(Architecture("cifar", "resnet20")).layer2[0].shortcut
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    traced = torch.fx.symbolic_trace(fresh(Architecture("cifar", "resnet20-b")))
    assert traced(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation"),
    [
        ("resnet50", 224, 232, "bilinear"),
        ("vgg16", 224, 256, "bilinear"),
        ("inception_v3", 299, 342, "bilinear"),
        ("efficientnet_b3", 300, 320, "bicubic"),
        ("fcn_resnet50", 520, 520, "bilinear"),
        ("cifar/resnet20", 32, None, "bilinear"),
    ],
)
def test_preprocessing(name: str, size: int, resize: int | None, interpolation: str) -> None:
    found = preprocessing_of(parse_architecture(name))
    assert (found.input_size, found.resize, found.interpolation) == ((3, size, size), resize, interpolation)
    assert found.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", torchvision_names())
def test_all_of_torchvision_has_a_preprocessing(name: str) -> None:
    found = preprocessing_of(Architecture("torchvision", name))
    assert found.input_size[0] == len(found.mean) == len(found.std) == 3


def test_preprocessing_of_timm() -> None:
    pytest.importorskip("timm")
    found = preprocessing_of(Architecture("timm", "vit_base_patch16_224"))
    assert (found.mean, found.std, found.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert found.resize == 248
    assert preprocessing_of(Architecture("timm", "resnet50", {"in_chans": 1})).input_size[0] == 1
