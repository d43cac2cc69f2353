"""Starting up: what is imported, what is printed, and how the process ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

COMMANDS = ("inspect", "recipes", "convert", "finetune", "evaluate", "verify", "diff", "slice", "history", "undo")


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, *code.split("\n", 1)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_version_recipes_and_history_import_no_torch(converted: Path, tmp_path: Path) -> None:
    lines = [["--help"], ["--version"], ["recipes"], ["recipes", "pix"], ["recipes", "--json"], ["recipes", "nix"]]
    lines += [["history", str(converted)], ["history", str(converted), "--json", "-v"]]
    lines += [[command, "--help"] for command in COMMANDS]
    code = f"""
import sys
from chansurg.cli.application import run
for line in {lines!r}:
    run(line)
    heavy = [name for name in ("torch", "torchvision", "timm", "numpy") if name in sys.modules]
    assert not heavy, (line, heavy)
"""
    ran = python(f"-c\n{code}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_importing_the_package_imports_no_torch(tmp_path: Path) -> None:
    ran = python("-c\nimport sys, chansurg; chansurg.InputError; assert 'torch' not in sys.modules", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_the_module_is_the_command(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for arguments, code in ((["--version"], 0), (["nonsense", "--json"], 2)):
        line = [sys.executable, "-m", "chansurg", *arguments]
        ran = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": str(root / "src")}, capture_output=True, text=True, check=False)
        assert ran.returncode == code
        assert ran.stdout.startswith("chansurg 0." if code == 0 else '{"error"')
        assert ran.stderr == ""


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "pix"], ["recipes", "pix", "--json"]])
def test_a_reader_that_leaves_is_no_error_to_tell_of(tmp_path: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    line = [sys.executable, "-m", "chansurg", *arguments]
    ran = subprocess.run(line, cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "pix"], ["recipes", "--json"]])
def test_a_stdout_that_takes_nothing_is_told_of_without_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    line = [sys.executable, "-m", "chansurg", *arguments]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(line, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: The disk is full")
    assert len(ran.stderr.splitlines()) == 4
    closed = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *line], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, "")


def test_no_report_fails_on_a_character(converted: Path, resnet20: Path, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONIOENCODING": "ascii", "PYTHONDONTWRITEBYTECODE": "1"}
    shutil.copy(converted, tmp_path / "größe 🦀.safetensors")
    for command in (
        ["convert", str(resnet20), "--recipe", "pix", "--mode", "downscale"],
        ["history", "größe 🦀.safetensors"],
        ["history", "größe 🦀.safetensors", "--json"],
        ["history", "größer"],
    ):
        line = [sys.executable, "-m", "chansurg", *command]
        ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == (2 if command[-1] == "größer" else 0), ran.stderr
        assert "bug" not in ran.stderr
        if command[0] == "convert":
            assert "layer1.0 \\u2026 layer1.2" in ran.stdout
        if "--json" in command:
            assert json.loads(ran.stdout)["file"] == "größe 🦀.safetensors"


@pytest.mark.parametrize("swallowed", ["", "try", "try and fail", "exec"])
def test_an_interrupt_ends_with_130_one_line_and_no_file(tmp_path: Path, swallowed: str) -> None:
    network = "from torch import nn\nnetwork = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))\n"
    interrupt = "import os, signal\n"
    if swallowed == "exec":
        interrupt += "exec('os.kill(os.getpid(), signal.SIGINT)')\n"
    elif swallowed:
        interrupt += "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    else:
        interrupt += "os.kill(os.getpid(), signal.SIGINT)\n"
    if "fail" in swallowed:
        interrupt += "raise ImportError('cannot load it twice')\n"
    (tmp_path / "interrupting.py").write_text(interrupt + network)
    line = [sys.executable, "-m", "chansurg", "convert", "interrupting:network", "--recipe", "pix", "--mode", "downscale", "-q"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run([*line, "--input-size", "8"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.splitlines() == ["Interrupted; nothing was written."]
    assert ran.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interrupting.py"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert ran.err == ""
    assert f"chansurg {command} " in ran.out.partition("Examples")[2] + " "
    assert all(option in ran.out for option in ("--json", "--quiet", "-q", "--verbose", "-v"))


def test_every_command_is_shown(cli: Cli) -> None:
    shown = cli("--help").out
    assert all(command in shown for command in COMMANDS)


def test_without_a_command_the_help_is_shown(cli: Cli) -> None:
    ran = cli()
    assert ran.code in (0, 2)  # a success in older versions of click
    assert "Usage" in ran.out


@pytest.mark.parametrize(
    "line",
    [
        "convert",
        "convert x",
        "convert x --recipe",
        "convert x --recipe pix --zetta 4",
        "convert x --recipe pix --seed one",
        "evaluate x",
        "evaluate x --data . --batch-size 0",
        "evaluate x --data . --workers many",
        "inspect x y",
        "nonsense",
        "--nonsense",
    ],
)
def test_usage_errors_have_four_parts(cli: Cli, line: str) -> None:
    ran = cli(*line.split())
    assert ran.code == 2
    assert ran.out == ""
    assert [part.split(":")[0].strip() for part in ran.err.splitlines()] == ["error", "where", "not done", "to do"]
    command, *rest = line.split()
    told = cli(command, "--json", *rest)
    assert told.code == 2
    assert set(told.document["error"]) == {"what", "where", "not_done", "to_do"}
    assert told.err == ""


@pytest.mark.parametrize(
    "line",
    [
        ["convert", "", "--recipe", "pix"],
        ["inspect", ""],
        ["evaluate", "x", "--data", ""],
        ["verify", "", "x"],
        ["diff", "x", ""],
        ["history", ""],
        ["undo", ""],
    ],
)
def test_an_empty_name_is_a_usage_error_and_not_the_current_folder(cli: Cli, line: list[str]) -> None:
    ran = cli(*line)
    assert ran.code == 2
    assert "It is empty." in ran.err
    assert f"the command line of `chansurg {line[0]}`" in ran.err


def test_a_bug_is_called_a_bug_and_its_traceback_is_for_v_alone(cli: Cli, resnet20: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("somewhere inside")

    monkeypatch.setattr("chansurg.surgery.opening.read_checkpoint", broken)
    ran = cli("inspect", resnet20)
    assert ran.code == 1
    assert "bug in chansurg: ZeroDivisionError: somewhere inside" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in cli("inspect", resnet20, "-v").err
    assert "bug in chansurg" in cli("inspect", resnet20, "--json").document["error"]["what"]


def test_recipes_as_json(cli: Cli) -> None:
    everything = cli("recipes", "--json").document
    one = cli("recipes", "pix", "--json").document
    assert one in everything["recipes"]
    assert {option["name"]: option["default"] for option in one["options"]}["mode"] == "squeeze"
    assert json.dumps(one)
    assert cli("recipes", "-q").out == "mod\npcs\npix\nslimconv\n"


def test_one_recipe_in_full(cli: Cli) -> None:
    shown = cli("recipes", "pix").out
    assert all(text in shown for text in ("--zeta", "--tau", "0.5", "squeeze, downscale", "when not", "Pick-or-Mix"))


def test_an_unknown_recipe(cli: Cli) -> None:
    ran = cli("recipes", "pixx")
    assert ran.code == 2
    assert "Did you mean 'pix'?" in ran.err
