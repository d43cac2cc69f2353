"""convert with limits, patterns and images; the drift wherever it is shown."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import chansurg
from tests.cli.conftest import Cli

DOWNSCALE = ("--recipe", "pix", "--mode", "downscale")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(16):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_patterns_and_limits_reach_the_plan_and_the_journal(cli: Cli, resnet20: Path) -> None:
    line = ("convert", resnet20, *DOWNSCALE, "--only", "layer1", "--only", "layer2.0", "--skip", "*.conv2", "--max-blocks", 2)
    document = cli(*line, "--json").document
    assert {edit["path"].rpartition(".")[0] for edit in document["edits"]} <= {"layer1.0", "layer1.1", "layer1.2", "layer2.0"}
    choice = document["choice"]
    assert [site["path"] for site in choice["sites"] if site["taken"]] == [skip["path"] for skip in choice["sites"][:2]]
    assert choice["asked"] == {"max_blocks": 2}
    assert {site["path"] for site in choice["sites"]} == {"layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1", "layer2.0.conv1"}
    reasons = {skip["path"]: skip["reason"] for skip in document["skipped"]}
    assert reasons["layer1.0.conv2"] == "--skip names it"
    assert reasons["layer3.0.conv1"] == "--only does not name it"
    shown = cli("history", "resnet20-pix.safetensors").out
    assert "--max-blocks 2 --only layer1 --only layer2.0 --skip *.conv2" in shown
    assert "2 of 4 sites taken, on 32 inputs of normal noise" in shown


def test_the_trade_is_shown(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    ran = cli("convert", resnet20, *DOWNSCALE, "--skip", "layer3", "--target-macs", "0.9", "--dry-run")
    assert "where to cut, tried on 32 inputs of normal noise (" in ran.out
    assert "MACs saved  drift alone" in ran.out
    assert "  taken" in ran.out
    assert "--target-macs 0.9 is reached without it" in ran.out
    assert "sites more that stay as they are (-v lists them)" in ran.out
    assert "of the original's MACs, drift of the outputs " in ran.out
    assert "where to cut: " in ran.err, "its progress, in plain lines where there is no terminal"
    every = cli("convert", resnet20, *DOWNSCALE, "--skip", "layer3", "--target-macs", "0.9", "--dry-run", "-v").out
    assert "-v lists them" not in every
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (("--only", "layer9"), 2, "matches no site"),
        (("--max-blocks", "0"), 2, "0 is not a value of --max-blocks"),
        (("--target-macs", "1.5"), 2, "1.5 is not a value of --target-macs"),
        (("--keep-drift", "nan"), 2, "nan is not a value of --keep-drift"),
        (("--target-macs", "0.1"), 1, "the best is 0.5"),
        (("--samples", "64"), 2, "no images were named"),
        (("--refine", "5"), 2, "no images were named"),
        (("--calibrate", "absent"), 2, "absent"),
        (("--calibrate", ""), 2, "empty"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(
    cli: Cli, resnet20: Path, tmp_path: Path, more: tuple[str, ...], code: int, told: str
) -> None:
    ran = cli("convert", resnet20, *DOWNSCALE, *more)
    assert ran.code == code, ran.err
    assert told in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_drift_is_shown_by_convert_inspect_and_history(cli: Cli, resnet20: Path) -> None:
    ran = cli("convert", resnet20, *DOWNSCALE)
    title = "drift of pix before any training, on 8 inputs of normal noise"
    assert "drift before any training, on 8 inputs of normal noise" in ran.out
    assert "and 4 blocks that drift less (-v lists them)" in ran.out
    told = chansurg.history("resnet20-pix.safetensors").journal[-1].results["drift"]
    worst = max(told["blocks"], key=lambda block: block["relative_error"])
    assert f"{worst['path']}  " in ran.out
    document = cli("inspect", "resnet20-pix.safetensors", "--json").document
    assert document["drift"] == [{"recipe": "pix", **told}]
    assert title in cli("inspect", "resnet20-pix.safetensors").out
    assert cli("inspect", resnet20, "--json").document["drift"] == []
    brief, whole = (cli("history", "resnet20-pix.safetensors", *more).out for more in ((), ("-v",)))
    assert f"drift of the outputs {told['outputs']:.3f}, on 8 inputs of normal noise" in brief
    assert all(f"{block['path']} " in whole for block in told["blocks"])


def test_a_conversion_that_changes_nothing_says_so(cli: Cli, resnet20: Path) -> None:
    assert "the same, bit for bit" in cli("convert", resnet20, "--recipe", "pcs").out


def test_verify_on_images(cli: Cli, resnet20: Path, converted: Path, images: Path) -> None:
    document = cli("verify", resnet20, converted, "--data", images, "--samples", 10, "--json").document
    assert document["inputs"] == 10
    assert not document["equal"]
    assert document["agreement"] * 10 == pytest.approx(round(document["agreement"] * 10))
    assert "on 16 images" in cli("verify", resnet20, resnet20, "--data", images).out
    for more, told in ((("--samples", 4), "no images were named"), (("--data", "absent"), "absent")):
        ran = cli("verify", resnet20, converted, *more)
        assert ran.code == 2
        assert told in ran.err


@pytest.mark.parametrize(
    "line",
    [
        ("cifar/resnet20", *DOWNSCALE, "--target-macs", "0.9", "--dry-run"),
        ("densenet121", "--recipe", "slimconv", "--input-size", "64"),
        ("cifar/resnet20", "--recipe", "pcs", "--target-macs", "0.9"),
    ],
)
def test_a_terminal_of_80_columns_holds_it(cli: Cli, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    ran = cli("convert", *line)
    assert max(map(len, (ran.out + ran.err).splitlines())) <= 80
    assert len((ran.out + ran.err).splitlines()) < 80


def test_a_refusal_of_many_sites_fits_a_screen(cli: Cli) -> None:
    ran = cli("convert", "densenet121", "--recipe", "slimconv", "--input-size", "64")
    assert ran.code == 1
    assert "(or 57 others like it): features.denseblock1.denselayer1.conv2, " in ran.err
    assert len(ran.err.splitlines()) < 15


def test_only_if_faster_shows_the_milliseconds(cli: Cli, resnet20: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chansurg.surgery import planning
    from chansurg.surgery.selecting.timed import TimedSite, Timing, Where

    def timed(model: object, converted: object, paths: list[str], where: Where, **_: object) -> Timing:
        first, *others = paths
        slower = (TimedSite(path, path, 1.0, 2.0, False, "it is slower here") for path in others)
        return Timing(where, 2, {}, (TimedSite(first, first, 2.0, 1.0, True, "it is faster here"), *slower))

    monkeypatch.setattr(planning, "time_sites", timed)
    run = cli("convert", resnet20, *DOWNSCALE, "--only", "layer1", "--only-if-faster", "--runtime", "compile")
    assert "what the sites take on this machine, in turn (compile, 1 image, 2 threads)" in run.out
    assert "layer1.0.conv1" in run.out
    assert "2.000" in run.out
    assert "1 site of 6 taken: 2.00 ms become 1.00 ms" in run.out
    assert "1 of 6 sites faster in compile" in cli("history", "resnet20-pix.safetensors").out


def test_how_to_time_without_timing_is_refused(cli: Cli, resnet20: Path) -> None:
    run = cli("convert", resnet20, *DOWNSCALE, "--runtime", "eager")
    assert run.code == 2
    assert "--runtime tells how to time sites" in run.err
    assert "Add --only-if-faster." in run.err
