from __future__ import annotations

from pathlib import Path

import pytest
import torch

import chansurg
from tests.cli.conftest import Cli


def test_the_document_says_what_was_written_and_how_far_it_is_from_the_model(cli: Cli, converted: Path, tmp_path: Path) -> None:
    ran = cli("export", converted, "--format", "pt2", "--json")
    assert ran.code == 0, ran.out + ran.err
    document = ran.document
    assert document["output"] == "resnet20-pix.pt2"
    assert document["format"] == "pt2"
    assert document["input_shape"] == [None, 3, 32, 32]
    assert 0 <= document["max_rel_error"] <= document["tolerance"]
    assert document["bytes"] == (tmp_path / "resnet20-pix.pt2").stat().st_size
    assert len(document["optimization"]["folded"]) == 19
    network = chansurg.load(converted)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(document["output"]).module()(x), network(x), rtol=1e-4, atol=1e-5)
    assert chansurg.exported_record(document["output"]).journal == chansurg.history(converted).journal
    assert "1. pix --mode downscale" in cli("history", document["output"]).out


def test_what_is_shown_and_that_no_file_is_replaced_unasked(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    shown = cli("export", resnet20, "--format", "pt2", "-o", "r20.pt2", "--no-optimize", "-v")
    assert shown.code == 0, shown.err
    assert "Bx3x32x32 float32" in shown.out
    assert "largest difference from the model, relative" in shown.out
    assert "run on 1, 2 and 5 random images" in shown.out
    assert "optimised" not in shown.out
    first = (tmp_path / "r20.pt2").read_bytes()
    again = cli("export", resnet20, "--format", "pt2", "-o", "r20.pt2")
    assert again.code == 2
    assert "--force" in again.err
    assert (tmp_path / "r20.pt2").read_bytes() == first
    forced = cli("export", resnet20, "--format", "pt2", "-o", "r20.pt2", "--force", "-q")
    assert forced.code == 0
    assert forced.out.startswith("r20.pt2  relative error ")
    assert (tmp_path / "r20.pt2").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["r20.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "no format"),
        (["--opset", "9"], "Opset 9"),
        (["--format", "pt2", "--batch-size", "0"], "no batch size"),
        (["-o", "nowhere/r20.onnx"], "folder"),
    ],
)
def test_bad_options(cli: Cli, resnet20: Path, arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = cli("export", resnet20, *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_input_is_never_replaced(cli: Cli, converted: Path) -> None:
    before = converted.read_bytes()
    ran = cli("export", converted, "-o", converted, "--force")
    assert ran.code == 2
    assert "The output is the input" in ran.err
    assert converted.read_bytes() == before
