"""The wheel holds everything, and works away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("surgery", "recipes", "cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in (*PARTS, "src"):
        shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(line, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = next(name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert "Apache License" in archive.read(licence).decode()
    files = [path for part in PARTS for path in (ROOT / part).rglob("*") if path.suffix in (".py", ".json", ".cpp", ".h")]
    expected = {f"chansurg/{path.relative_to(ROOT).as_posix()}" for path in files}
    assert held == expected | {"chansurg/__init__.py", "chansurg/__main__.py", "chansurg/py.typed"}


def test_it_runs_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    for arguments, shown in (
        (["--version"], "chansurg 0."),
        (["recipes", "-q"], "pix\n"),
        (["inspect", "cifar/resnet20", "-q"], "269.7 k params"),
    ):
        line = [sys.executable, "-m", "chansurg", *arguments]
        ran = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert shown in ran.stdout
