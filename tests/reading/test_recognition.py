"""Networks are recognised by names and shapes: all of torchvision's, wrapped and renamed as people's files are, and none wrongly."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.errors import InputError
from chansurg.surgery.reading.builders import build, parse_architecture, torchvision_names
from chansurg.surgery.reading.checkpoint import read_checkpoint
from chansurg.surgery.reading.fingerprints import FILE, index_from_json
from chansurg.surgery.reading.indexing import index_of
from chansurg.surgery.reading.names import Shape
from chansurg.surgery.reading.recognition import Recognition, recognise
from chansurg.surgery.reading.weights import build_with_tensors

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"


@cache
def _shapes(name: str, kwargs: str) -> Mapping[str, Shape]:
    architecture = parse_architecture(name)
    model = build(Architecture(architecture.source, architecture.name, json.loads(kwargs)))
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def shapes_of(name: str, **kwargs: Any) -> dict[str, Shape]:
    return dict(_shapes(name, json.dumps(kwargs)))


def prefixed(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    return {prefix + key: shape for key, shape in shapes.items()}


def check(found: Recognition, name: str, shapes: Mapping[str, Shape], prefix: str = "", **kwargs: Any) -> None:
    assert str(found.architecture) == name
    assert dict(found.architecture.kwargs) == kwargs
    assert dict(found.names) == {prefix + key: key for key in shapes}


def fails(shapes: Mapping[str, Shape], **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        recognise(shapes, **options)
    assert all(caught.value.parts().values())
    return caught.value


@pytest.mark.parametrize("name", torchvision_names("classification"))
def test_every_classifier_of_torchvision(name: str) -> None:
    for classes, prefix in ((1000, ""), (7, "module.")):
        shapes = shapes_of(f"torchvision/{name}", num_classes=classes)
        check(recognise(prefixed(shapes, prefix)), f"torchvision/{name}", shapes, prefix, num_classes=classes)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet101", "fasterrcnn_resnet50_fpn", "ssd300_vgg16", "r3d_18"])
def test_detectors_segmenters_and_video(name: str) -> None:
    shapes = shapes_of(name, num_classes=5)
    check(recognise(prefixed(shapes, "model.")), f"torchvision/{name}", shapes, "model.", num_classes=5)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("googlenet", {"aux_logits": False}), ("inception_v3", {"aux_logits": False}), ("fcn_resnet50", {"aux_loss": True})],
)
def test_auxiliary_heads(name: str, kwargs: dict[str, Any]) -> None:
    shapes = shapes_of(name, num_classes=5, **kwargs)
    check(recognise(shapes), f"torchvision/{name}", shapes, num_classes=5, **kwargs)
    check(recognise(shapes, architecture=parse_architecture(name)), f"torchvision/{name}", shapes, num_classes=5, **kwargs)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "backbone.", "model.", "encoder.", "net._orig_mod.", "module.model.backbone.", "0."]
)
def test_prefixes(prefix: str) -> None:
    for name in ("mobilenet_v2", "cifar/resnet20-b"):
        shapes = shapes_of(name, num_classes=12)
        found = recognise({"criterion.weight": (12,), **prefixed(shapes, prefix)})
        check(found, str(parse_architecture(name)), shapes, prefix, num_classes=12)
        assert found.ignored == ("criterion.weight",)


def test_a_wrapper_somewhere_inside() -> None:
    shapes = shapes_of("resnet18", num_classes=3)
    found = recognise({key.replace("layer2.", "layer2._orig_mod."): shape for key, shape in shapes.items()})
    assert found.names["layer2._orig_mod.0.conv1.weight"] == "layer2.0.conv1.weight"


def test_a_prefix_on_the_body_alone() -> None:
    shapes = shapes_of("resnet18", num_classes=3)
    found = recognise({key if key.startswith("fc.") else f"encoder.{key}": shape for key, shape in shapes.items()})
    assert str(found.architecture) == "torchvision/resnet18"
    assert found.names["encoder.conv1.weight"] == "conv1.weight"
    assert found.names["fc.weight"] == "fc.weight"


def test_other_tensors_beside_bare_names() -> None:
    shapes = shapes_of("resnet18", num_classes=3)
    found = recognise({"queue": (128, 9), **shapes, "total_ops": (1,), "layer1.total_ops": (1,)})
    check(found, "torchvision/resnet18", shapes, num_classes=3)
    assert set(found.ignored) == {"queue", "total_ops", "layer1.total_ops"}


def test_two_copies_of_one_network() -> None:
    shapes = shapes_of("resnet18", num_classes=3)
    found = recognise({**prefixed(shapes, "student."), **prefixed(shapes, "teacher.")})
    check(found, "torchvision/resnet18", shapes, "student.", num_classes=3)
    assert any("2 networks" in note for note in found.notes)


def test_files_without_counters() -> None:
    shapes = {key: shape for key, shape in shapes_of("resnet18").items() if not key.endswith("num_batches_tracked")}
    assert str(recognise(shapes).architecture) == "torchvision/resnet18"


def test_names_of_older_releases() -> None:
    dense = shapes_of("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): shape for key, shape in dense.items()}
    assert old.keys() != dense.keys()
    found = recognise(prefixed(old, "module."))
    assert str(found.architecture) == "torchvision/densenet121"
    assert set(found.names.values()) == set(dense)
    vit = shapes_of("vit_b_32")
    old = {key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): shape for key, shape in vit.items()}
    found = recognise(old)
    assert str(found.architecture) == "torchvision/vit_b_32"
    assert set(found.names.values()) == set(vit)


def test_another_image_size() -> None:
    shapes = shapes_of("vit_b_16", num_classes=4, image_size=384)
    check(recognise(shapes), "torchvision/vit_b_16", shapes, num_classes=4, image_size=384)


def test_what_is_only_similar_is_refused_with_the_difference() -> None:
    shapes = shapes_of("resnet18", num_classes=3)
    body = {key: shape for key, shape in shapes.items() if not key.startswith("fc.")}
    error = fails({**body, "fc.0.weight": (9, 512), "fc.0.bias": (9,), "fc.2.weight": (3, 9), "fc.2.bias": (3,)})
    assert "resnet18" in error.what
    assert "fc.0.weight" in error.what
    assert "--arch" in error.to_do
    # Somebody else's head beside the body: recognising the body alone would lose the classifier.
    assert "resnet18" in fails({**prefixed(body, "backbone."), "classifier.weight": (3, 512), "classifier.bias": (3,)}).what
    error = fails({**shapes, "layer1.0.conv1.weight": (60, 64, 3, 3)})
    assert "layer1.0.conv1.weight" in error.what


def test_what_is_like_nothing_is_refused() -> None:
    fails({})
    fails({"weight": (1,)})
    fails({f"blocks.{n}.w": (3, 3) for n in range(300)})
    fails(prefixed(shapes_of("resnet18"), "encoder.") | {f"decoder.{n}.weight": (3, 3) for n in range(400)})


def test_twins_within_torchvision_are_listed() -> None:
    shapes = shapes_of("fasterrcnn_mobilenet_v3_large_fpn", num_classes=5)
    error = fails(shapes)
    assert "fasterrcnn_mobilenet_v3_large_fpn" in error.what
    assert "fasterrcnn_mobilenet_v3_large_320_fpn" in error.what
    named = recognise(shapes, architecture=parse_architecture("fasterrcnn_mobilenet_v3_large_320_fpn"))
    assert named.architecture.kwargs["num_classes"] == 5


def test_a_named_architecture_is_checked() -> None:
    shapes = shapes_of("resnet34", num_classes=3)
    found = recognise(prefixed(shapes, "module."), architecture=parse_architecture("resnet34"))
    check(found, "torchvision/resnet34", shapes, "module.", num_classes=3)
    # All of ResNet-18's tensors are in ResNet-34, with the same shapes.
    assert "layer1.2.conv1.weight" in fails(shapes, architecture=parse_architecture("resnet18")).what
    assert "layer1.0.conv1.weight" in fails(shapes, architecture=parse_architecture("resnet50")).what
    assert "cifar/resnet20" in fails(shapes, architecture=parse_architecture("cifar/resnet20")).what


def test_a_factory_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    module = types.ModuleType("own_networks")
    module.make = lambda num_classes=4: nn.Sequential(nn.Flatten(), nn.Linear(3, num_classes))  # type: ignore[attr-defined]
    module.fixed = lambda: nn.Sequential(nn.Linear(3, 4))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_networks", module)
    shapes: dict[str, Shape] = {"module.1.weight": (6, 3), "module.1.bias": (6,)}
    found = recognise(shapes, architecture=Architecture("factory", "own_networks:make"))
    assert found.architecture.kwargs == {"num_classes": 6}
    assert dict(found.names) == {"module.1.weight": "1.weight", "module.1.bias": "1.bias"}
    fails(shapes, architecture=Architecture("factory", "own_networks:fixed"))


def test_timm_networks() -> None:
    pytest.importorskip("timm")
    for name in ("timm/convnext_tiny", "timm/levit_128s", "timm/res2net50_14w_8s", "timm/seresnet50", "timm/vit_tiny_patch16_224"):
        shapes = shapes_of(name, num_classes=7)
        check(recognise(prefixed(shapes, "module.")), name, shapes, "module.", num_classes=7)
    grey = shapes_of("timm/convnext_tiny", num_classes=7, in_chans=1)
    check(recognise(grey), "timm/convnext_tiny", grey, num_classes=7, in_chans=1)
    headless = shapes_of("timm/convnext_tiny", num_classes=0)
    check(recognise(headless), "timm/convnext_tiny", headless, num_classes=0)


def test_ties_with_and_within_timm() -> None:
    pytest.importorskip("timm")
    found = recognise(shapes_of("timm/resnet50"))
    assert str(found.architecture) == "torchvision/resnet50"
    assert any("timm/resnet50" in note for note in found.notes)
    error = fails(shapes_of("timm/tf_efficientnet_b0"))
    assert "timm/efficientnet_b0," in error.what
    assert "timm/tf_efficientnet_b0" in error.what
    told = recognise(shapes_of("timm/tf_efficientnet_b0"), architecture=parse_architecture("timm/tf_efficientnet_b0"))
    assert str(told.architecture) == "timm/tf_efficientnet_b0"
    same = recognise(shapes_of("timm/deit_base_patch16_224"))
    assert any("compute the same" in note for note in same.notes)


def test_timm_networks_where_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    shapes = shapes_of("timm/convnext_tiny", num_classes=7)
    monkeypatch.setitem(sys.modules, "timm", None)
    error = fails(shapes)
    assert "timm/convnext_tiny" in error.what
    assert "chansurg[timm]" in error.to_do
    assert str(recognise(shapes_of("torchvision/resnet18")).architecture) == "torchvision/resnet18"


def test_torchvision_is_recognised_without_importing_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = shapes_of("torchvision/resnet18")
    imported = [name for name in sys.modules if name.partition(".")[0] == "timm"]
    for name in imported:
        monkeypatch.delitem(sys.modules, name)
    recognise(shapes)
    assert "timm" not in sys.modules


def test_an_index_is_what_the_libraries_build() -> None:
    architectures = [Architecture("torchvision", name) for name in ("resnet18", "squeezenet1_0", "densenet121")]
    data = index_of([*architectures, Architecture("cifar", "resnet20")])
    index = index_from_json(json.loads(json.dumps(data)))
    assert index.known() == {"torchvision/resnet18", "torchvision/squeezenet1_0", "torchvision/densenet121", "cifar/resnet20"}
    ((entry, classes),) = index.matches(
        {key: shape for key, shape in shapes_of("resnet18", num_classes=3).items() if "num_batches" not in key}
    )
    assert str(entry.members[0][0]) == "torchvision/resnet18"
    assert classes == 3
    shipped = Path(sys.modules["chansurg.surgery.reading.fingerprints"].__file__ or "").with_name(FILE)
    assert shipped.stat().st_size < 600_000


@pytest.mark.skipif(not MODELS.is_dir(), reason="needs ../shared/models")
@pytest.mark.parametrize("depth", [20, 56])
def test_published_cifar_checkpoints(depth: int) -> None:
    for file in MODELS.glob(f"resnet{depth}-*"):
        read = read_checkpoint(file)
        found = recognise({key: tuple(tensor.shape) for key, tensor in read.tensors.items()})
        assert str(found.architecture) == f"cifar/resnet{depth}"
        assert found.architecture.kwargs == {"num_classes": 10}
        model = build_with_tensors(found.architecture, {name: read.tensors[key] for key, name in found.names.items()})
        with torch.no_grad():
            assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
