"""Kernels for the CPU are built once, kept where only their user writes, and done without where they cannot be had."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.pix.layer import PickOrMix
from chansurg.surgery.kernels import compiled

SOURCE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small source, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    file = tmp_path / "answer.cpp"
    file.write_text(SOURCE)
    compiled.library.cache_clear()
    yield file
    compiled.library.cache_clear()


needs_compiler = pytest.mark.skipif(isinstance(compiled.library(PICK_OR_MIX.source), str), reason="no kernels are built here")


def reason(source: Path) -> str:
    found = compiled.library(source)
    assert isinstance(found, str)
    return found


@needs_compiler
def test_a_source_is_built_once_and_kept(source: Path) -> None:
    functions = compiled.library(source)
    assert not isinstance(functions, str)
    assert functions.answer() == 42
    (built,) = (Path(os.environ["XDG_CACHE_HOME"]) / "chansurg" / "kernels").iterdir()
    written = built.stat().st_mtime_ns
    compiled.library.cache_clear()
    assert compiled.is_available(source)
    assert built.stat().st_mtime_ns == written
    source.write_text(SOURCE.replace("42", "43"))
    compiled.library.cache_clear()
    functions = compiled.library(source)
    assert not isinstance(functions, str)
    assert functions.answer() == 43


def test_they_can_be_turned_off(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "off")
    assert reason(source) == "CHANSURG_KERNELS turns kernels off"
    assert not (Path(os.environ["XDG_CACHE_HOME"])).exists()


def test_without_a_compiler_there_are_none(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(source.parent))
    monkeypatch.delenv("CXX", raising=False)
    assert reason(source) == "no C++ compiler was found"


@needs_compiler
def test_a_source_that_does_not_compile_leaves_nothing(source: Path) -> None:
    source.write_text("int answer( {\n")
    assert "could not build answer.cpp" in reason(source)
    assert not list((Path(os.environ["XDG_CACHE_HOME"]) / "chansurg" / "kernels").iterdir())


@needs_compiler
def test_a_cache_that_others_can_write_to_is_not_loaded_from(source: Path) -> None:
    assert compiled.is_available(source)
    (Path(os.environ["XDG_CACHE_HOME"]) / "chansurg" / "kernels").chmod(0o777)
    compiled.library.cache_clear()
    assert "others than its user can write" in reason(source)


def test_a_layer_computes_the_same_without(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = PickOrMix(16, 4), torch.randn(2, 16, 5, 5)
    expected = layer(x)
    monkeypatch.setenv(compiled.VARIABLE, "off")
    compiled.library.cache_clear()
    assert not PICK_OR_MIX.has_kernel(x)
    assert torch.allclose(layer(x), expected, rtol=1e-6, atol=1e-7)
    arguments = (x, torch.rand(2, 4), None, [4], [4], False, False, 0.5)
    assert torch.equal(PICK_OR_MIX(*arguments), PICK_OR_MIX.plain(*arguments))
