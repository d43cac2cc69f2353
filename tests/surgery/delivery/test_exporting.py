"""What is exported runs elsewhere and computes the same, carries its journal, and is there whole or not at all."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks.gated import draw_masks
from networks.matrix import SMALL, Case, converted, original
from networks.running import outputs
from torch import Tensor, nn

import chansurg
from chansurg.surgery.delivery import exporting, formats
from chansurg.surgery.delivery.formats import FORMATS

SIZE = (3, 32, 32)


def of_recipe(recipe: str) -> nn.Module:
    return converted(Case(SMALL[0], recipe, (("mode", "downscale"),) if recipe == "pix" else ()))


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    return torch.from_numpy(found)


def images(batch_size: int) -> Tensor:
    return torch.randn(batch_size, *SIZE, generator=torch.Generator().manual_seed(batch_size))


@pytest.fixture
def plain() -> nn.Module:
    """The smallest network there is."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.mark.parametrize("recipe", ["pix", "slimconv"])
def test_an_onnx_file_runs_with_any_number_of_images_and_carries_the_journal(recipe: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    network = of_recipe(recipe)
    path = tmp_path / "network.onnx"
    written = chansurg.export(network, path, input_size=SIZE)
    assert 0 < written.max_rel_error < 1e-5
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.onnx"]
    for batch_size in (1, 7):
        x = images(batch_size)
        assert torch.allclose(run_onnx(path, x), outputs(network, x), rtol=1e-4, atol=1e-5)
    record = chansurg.exported_record(path)
    assert record.journal == chansurg.record_of(network).journal
    assert record.preprocessing.input_size == SIZE
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    named = {tensor.name for tensor in model.graph.initializer}
    learned = {name for name, tensor in chansurg.optimize(network, images(2)).state_dict().items() if tensor.is_floating_point()}
    assert {name for name in named if name.endswith("conv2.weight") or name.startswith("stem.")} <= learned
    assert "fc.weight" in named
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    content = path.read_bytes()
    assert str(Path.cwd()).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(tmp_path).encode() not in content


def test_a_sliced_network_and_the_network_as_it_is(plain: nn.Module, tmp_path: Path) -> None:
    gated = chansurg.convert(original(SMALL[0]), "pcs", input_size=SIZE)
    draw_masks(gated, 0.5, torch.Generator().manual_seed(0))
    sliced = chansurg.slice(gated, input_size=SIZE)
    for network, optimized in ((sliced, True), (plain, False)):
        written = chansurg.export(network, tmp_path / f"{optimized}.onnx", input_size=SIZE, optimized=optimized)
        assert written.opset == 18
        assert (written.optimization is not None) is optimized
        assert torch.allclose(run_onnx(written.output, images(3)), outputs(network, images(3)), rtol=1e-4, atol=1e-5)
    assert [entry.kind for entry in chansurg.exported_record(tmp_path / "True.onnx").journal] == ["convert", "slice"]


@pytest.mark.parametrize("recipe", ["mod", "pcs"])
def test_an_archive_of_torch_runs_with_any_number_of_images_and_carries_the_journal(recipe: str, tmp_path: Path) -> None:
    network = of_recipe(recipe)
    path = tmp_path / "network.pt2"
    written = chansurg.export(network, path, "pt2", input_size=SIZE)
    assert written.max_rel_error < 1e-5
    opened = torch.export.load(path).module()
    for batch_size in (1, 7):
        found = opened(images(batch_size))
        assert not found.requires_grad
        assert torch.allclose(found, outputs(network, images(batch_size)), rtol=1e-4, atol=1e-5)
    assert chansurg.exported_record(path).journal == chansurg.record_of(network).journal
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.pt2"]
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if str(Path.cwd()).encode() in archive.read(name)]


def test_the_same_network_gives_the_same_bytes(plain: nn.Module, tmp_path: Path) -> None:
    written = []
    for format in ("pt2", "pt2", "onnx", "onnx"):
        chansurg.export(plain, tmp_path / "network", format, input_size=(3, 12, 12))
        written.append((tmp_path / "network").read_bytes())
    assert written[0] == written[1]
    assert written[2] == written[3]


def test_code_compiled_ahead_of_time_runs_and_carries_the_journal(plain: nn.Module, tmp_path: Path) -> None:
    if FORMATS["aoti"].missing() is not None:
        pytest.skip("no C++ compiler")
    path = tmp_path / "network.pt2"
    written = chansurg.export(plain, path, "aoti", input_size=(3, 12, 12))
    assert written.max_rel_error < 1e-5
    assert written.batch_sizes == (1, 2, 5)
    assert chansurg.exported_record(path).preprocessing.input_size == (3, 12, 12)
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.pt2"]


class OneAtATime(nn.Module):
    """Knows no other batch size than two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x).mean((2, 3))
        assert x.shape[0] in (1, 2, 5)
        return {"a": y.reshape(2, -1), "b": y}


def test_a_network_for_one_batch_size_is_refused_and_then_exported_with_that(tmp_path: Path) -> None:
    network = OneAtATime().eval()
    with pytest.raises(chansurg.ChansurgError):
        chansurg.export(network, tmp_path / "two.onnx", input_size=(3, 8, 8))
    assert list(tmp_path.iterdir()) == []
    written = chansurg.export(network, tmp_path / "two.onnx", input_size=(3, 8, 8), batch_size=2)
    assert written.input_shape == (2, 3, 8, 8)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(written.output), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["output_0", "output_1"]
    assert session.get_inputs()[0].shape == [2, 3, 8, 8]


class Decides(nn.Module):
    """Decides by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 0 else -self.conv(x)


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_what_cannot_be_exported_is_refused_and_an_earlier_file_stays(format: str, tmp_path: Path) -> None:
    path = tmp_path / "network"
    path.write_bytes(b"earlier")
    with pytest.raises(chansurg.Refusal, match="cannot be exported") as caught:
        chansurg.export(Decides().eval(), path, format, input_size=(3, 8, 8))
    assert "decisions by the values" in caught.value.to_do
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: [torch.zeros(x.shape[0], 2)], "outputs differ by"),
        (lambda x: [torch.zeros(x.shape[0], 3)], "outputs have shapes"),
        (lambda x: 1 / 0, "does not run"),
    ],
)
def test_a_file_that_computes_something_else_is_thrown_away(
    answer: Any, message: str, plain: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(FORMATS["pt2"], open=lambda path, device: answer)
    monkeypatch.setattr(exporting, "FORMATS", {**FORMATS, "pt2": wrong})
    with pytest.raises(chansurg.Refusal, match=message):
        chansurg.export(plain, tmp_path / "network.pt2", "pt2", input_size=(3, 12, 12))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_an_interrupt_leave_nothing(plain: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(order: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    def full(order: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for write, error in ((interrupted, KeyboardInterrupt), (full, chansurg.Refusal)):
        monkeypatch.setattr(exporting, "FORMATS", {"pt2": replace(FORMATS["pt2"], write=write)})
        with pytest.raises(error):
            chansurg.export(plain, tmp_path / "network.pt2", "pt2", input_size=(3, 12, 12))
        assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(chansurg.Refusal, match="disk is full"):
        chansurg.export(plain, tmp_path / "network.pt2", "pt2", input_size=(3, 12, 12))


def test_what_is_missing_is_named_with_the_way_to_get_it(plain: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for format, advice in (("onnx", "chansurg[onnx]"), ("aoti", "g++")):
        with pytest.raises(chansurg.InputError) as caught:
            chansurg.export(plain, tmp_path / "network", format, input_size=(3, 12, 12))
        assert advice in caught.value.to_do
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tflite"}, "no format"),
        ({"opset": 17}, "Opset 17 is older"),
        ({"batch_size": 0}, "no batch size"),
        ({"input_size": (3, 2, 2)}, "does not run on an input"),
        ({"input_size": (5, 12, 12)}, "does not run on an input"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, plain: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(chansurg.InputError, match=message):
        chansurg.export(plain, tmp_path / "network.pt2", **{"format": "pt2", "input_size": (3, 12, 12), **arguments})
    with pytest.raises(chansurg.InputError, match="folder"):
        chansurg.export(plain, tmp_path / "nowhere" / "network.pt2", "pt2")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_where_a_runtime_takes_it_and_double_where_it_does_not(plain: nn.Module, tmp_path: Path) -> None:
    written = chansurg.export(plain.bfloat16(), tmp_path / "half.pt2", "pt2", input_size=(3, 12, 12))
    assert written.dtype == "bfloat16"
    with pytest.raises(chansurg.Refusal, match=r"model\.float\(\)"):
        chansurg.export(plain.double(), tmp_path / "double.onnx", input_size=(3, 12, 12))
    assert [entry.name for entry in tmp_path.iterdir()] == ["half.pt2"]


def test_files_without_a_record(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (tmp_path / "text.onnx").write_text("no model")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "bare.onnx")
    with zipfile.ZipFile(tmp_path / "bare.pt2", "w") as archive:
        archive.writestr("bare/data.json", json.dumps({}))
    for name, message in (
        ("text.onnx", "cannot be read|no chansurg record"),
        ("nothing.onnx", "cannot be read"),
        ("bare.onnx", "no chansurg"),
    ):
        with pytest.raises(chansurg.InputError, match=message):
            chansurg.exported_record(tmp_path / name)
    with pytest.raises(chansurg.InputError, match="no chansurg record"):
        chansurg.exported_record(tmp_path / "bare.pt2")
