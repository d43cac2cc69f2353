from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from networks.gated import draw_masks

import chansurg
from tests.cli.conftest import Cli


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR ResNet-20 with gates of which half is masked."""
    network = chansurg.convert(chansurg.load("cifar/resnet20"), "pcs")
    draw_masks(network, 0.5, torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("models") / "r20-pcs.safetensors"
    chansurg.save(network, path)
    return path


def test_the_document_is_the_one_that_was_promised(cli: Cli, gated: Path, tmp_path: Path) -> None:
    ran = cli("slice", gated, "--json")
    assert ran.code == 0, ran.out + ran.err
    document = ran.document
    assert list(document) == ["output", "original", "before", "after", "max_abs_error", "max_rel_error", "masking_drift"]
    assert document["output"] == "r20-pcs-sliced.safetensors"
    for counts in (document["original"], document["before"], document["after"]):
        assert set(counts) == {"params", "macs", "ops", "memory_access"}
    assert document["original"] == chansurg.count(chansurg.load("cifar/resnet20")).as_json()
    assert document["before"] == chansurg.count(chansurg.load(gated)).as_json()
    assert document["after"] == chansurg.count(chansurg.load(tmp_path / document["output"])).as_json()
    assert document["after"]["macs"] < 0.5 * document["original"]["macs"]
    assert 0 < document["max_rel_error"] <= 1e-6
    assert document["masking_drift"] > 0.1
    assert cli("verify", gated, document["output"]).code == 0


def test_what_is_shown_and_a_dry_run_that_writes_nothing(cli: Cli, gated: Path, tmp_path: Path) -> None:
    shown = cli("slice", gated, "--dry-run", "--multiple-of", 4)
    assert shown.code == 0, shown.err
    assert re.search(r"Conv2d 16 -> 16, 3x3 +=> +Conv2d 16 -> (4|8|12), 3x3", shown.out)
    assert "masked, and kept (" in shown.out
    assert "after / original" in shown.out
    assert "allowed" in shown.out
    assert "Masking by itself moves the outputs by" in shown.out
    assert "nothing was written" in shown.out
    every = cli("slice", gated, "--dry-run", "-v", "--residual", "coupled", "--freeze-salience").out
    assert "]: exactly zero behind layer1.0.conv1_salience" in every
    assert "always fills up with 16 channels of zeros" in every
    assert "Masking and freezing by itself" in every
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_remove_is_no_success(cli: Cli, tmp_path: Path) -> None:
    chansurg.save(chansurg.convert(chansurg.load("cifar/resnet20"), "pcs"), tmp_path / "fresh.safetensors")
    ran = cli("slice", "fresh.safetensors", "--json")
    assert ran.code == 1
    assert "keep every channel" in ran.document["error"]["what"]
    assert not (tmp_path / "fresh-sliced.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--residual", "both"], "'both' is no way"),
        (["--multiple-of", "0"], "multiples of 0"),
        (["-o", "nowhere/small.safetensors"], "folder"),
    ],
)
def test_bad_options(cli: Cli, gated: Path, arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = cli("slice", gated, *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_gates_and_the_input_as_output(cli: Cli, resnet20: Path, gated: Path) -> None:
    ran = cli("slice", resnet20)
    assert ran.code == 2
    assert "has no gate" in ran.err
    before = gated.read_bytes()
    ran = cli("slice", gated, "-o", gated, "--force")
    assert ran.code == 2
    assert "The output is the input" in ran.err
    assert gated.read_bytes() == before
