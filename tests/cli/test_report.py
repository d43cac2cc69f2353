from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Cli


def test_a_page_is_written_about_models_and_their_speed(cli: Cli, resnet20: Path, converted: Path, tmp_path: Path) -> None:
    timed = cli("bench", converted, "--against", resnet20, "--json", "--seconds", 0, "--layout", "contiguous", "--as-it-is", "--no-memory")
    (tmp_path / "speed.json").write_text(timed.out)
    ran = cli("report", resnet20, converted, "--speed", "speed.json", "-o", "page.html", "--title", "Both", "--json")
    assert ran.code == 0, ran.err
    assert ran.document == {"output": "page.html", "models": [str(resnet20), str(converted)], "speeds": ["speed.json"]}
    text = (tmp_path / "page.html").read_text()
    for told in ("<title>Both</title>", "resnet20-pix.safetensors", "--mode downscale", f"Speed against {resnet20}"):
        assert told in text
    assert cli("report", "cifar/resnet20", "-o", "other.html").out == "wrote other.html, 1 model\n"


def test_what_must_not_be_replaced_is_not(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    ran = cli("report", resnet20)
    assert ran.code == 2
    assert (tmp_path / "report.html").read_text() == "mine"
    assert cli("report", resnet20, "--force", "-q").out == "report.html\n"
    assert cli("report", "report.html", "-o", "report.html", "--force").code == 2
    before = resnet20.read_bytes()
    assert cli("report", resnet20, "-o", resnet20, "--force").code == 2
    assert resnet20.read_bytes() == before


def test_bad_input_leaves_no_page(cli: Cli, resnet20: Path, tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(json.dumps({"results": 3}))
    for arguments in (
        (resnet20, "--speed", "speed.json"),
        (resnet20, "--speed", "absent.json"),
        ("absent.pth",),
        (resnet20, "-o", "no/a.html"),
    ):
        ran = cli("report", *arguments)
        assert ran.code == 2
        assert "Traceback" not in ran.err
    assert not (tmp_path / "report.html").exists()
