"""Files that earlier versions wrote load for ever, and compute the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from networks.running import outputs

import chansurg
from chansurg.surgery.edits import Narrow

TINY = "networks.small:tiny"
GOLDEN = Path(__file__).parents[2] / "golden"


def test_a_file_of_schema_1_still_loads_and_computes_the_same(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "pix-schema1.safetensors", tmp_path)
    network = chansurg.load(tmp_path / "pix-schema1.safetensors", arch=TINY)
    expected = json.loads((GOLDEN / "pix-schema1.json").read_text())
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    assert torch.allclose(outputs(network, x), torch.tensor(expected["outputs"]), rtol=1e-4, atol=1e-5)
    assert network.fc.weight.dtype == torch.float32
    record = chansurg.history(tmp_path / "pix-schema1.safetensors")
    assert [(e.recipe, e.options["mode"]) for e in record.journal] == [("pix", "squeeze"), ("pix", "downscale")]
    assert record.journal[-1].after == expected["after"]
    assert any(isinstance(e, Narrow) for e in record.journal[-1].edits)


def test_a_file_of_schema_2_still_loads_and_computes_the_same(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "pcs-schema2.safetensors", tmp_path)
    network = chansurg.load(tmp_path / "pcs-schema2.safetensors", arch=TINY)
    expected = json.loads((GOLDEN / "pcs-schema2.json").read_text())
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    assert torch.allclose(outputs(network, x), torch.tensor(expected["outputs"]), rtol=1e-4, atol=1e-5)
    assert {path: kept.tolist() for path, kept in chansurg.masks(network).items()} == expected["masks"]
    record = chansurg.history(tmp_path / "pcs-schema2.safetensors")
    assert [(entry.kind, entry.recipe) for entry in record.journal] == [("convert", "pcs"), ("finetune", "finetune"), ("slice", "slice")]
    assert [sorted({edit.op for edit in entry.edits}) for entry in record.journal] == [["attach", "scale"], [], ["narrow", "replace"]]
    assert record.journal[1].results["steps"] == 12
    assert record.journal[2].after == expected["after"]
    assert record.class_names == ("blue", "green", "red")


def test_a_file_of_schema_3_still_loads_and_computes_the_same(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "stacked-schema3.safetensors", tmp_path)
    network = chansurg.load(tmp_path / "stacked-schema3.safetensors", arch="networks.small:small")
    expected = json.loads((GOLDEN / "stacked-schema3.json").read_text())
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    assert torch.allclose(outputs(network, x), torch.tensor(expected["outputs"]), rtol=1e-4, atol=1e-5)
    record = chansurg.history(tmp_path / "stacked-schema3.safetensors")
    assert [entry.recipe for entry in record.journal] == ["mod", "slimconv", "pix"]
    ops = {edit.op for entry in record.journal for edit in entry.edits}
    assert ops == {"repeat", "route", "narrow", "swap", "inherit", "bypass"}
    assert [entry.as_json()["tensors"] for entry in record.journal] == expected["tensors"]
    assert record.journal[0].sources["blocks.4.conv1.weight"] == "blocks.2.conv1.weight"
    assert record.journal[-1].after == expected["after"]
