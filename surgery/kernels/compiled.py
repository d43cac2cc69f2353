"""Kernels in C++ for the CPU, built by the compiler that this machine has, if it has one. Nothing needs them.

A source is built once (about a second), with OpenMP through the very library that torch has loaded, and kept in the user's cache under a
name made of all that went into it. Where there is no compiler, or anything fails, there are no kernels, and the reason is told to whoever
asks. ``CHANSURG_KERNELS=off`` in the environment does without them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

VARIABLE = "CHANSURG_KERNELS"
_HEADERS = Path(__file__).parent
_SECONDS = 120
_OPTIMIZE = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic")  # -O3 takes nine times as long to compile, for the same speed


class Unavailable(Exception):
    """There are no compiled kernels here; says why."""


@cache
def library(source: Path) -> ctypes.CDLL | str:
    """The functions of a C++ source, built if need be; the reason as a text where they cannot be had."""
    try:
        return ctypes.CDLL(str(_built(source)))
    except (Unavailable, OSError, RuntimeError, subprocess.SubprocessError) as error:  # a user without a home is a RuntimeError
        return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def is_available(source: Path) -> bool:
    """Whether :func:`library` has functions to give."""
    return not isinstance(library(source), str)


def address(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, as functions take it; null for ``None``."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _built(source: Path) -> Path:
    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "no"):
        raise Unavailable(f"{VARIABLE} turns kernels off")
    if sys.platform == "win32":
        raise Unavailable("kernels are not built on Windows")
    compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("no C++ compiler was found")
    command = [compiler, "-std=c++17", *_OPTIMIZE, "-march=native", "-ffp-contract=off", "-fPIC", "-shared", f"-I{_HEADERS}", *_openmp()]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    parts = [part.read_bytes() for part in (source, *sorted(_HEADERS.glob("*.h")))]
    told = "\0".join([*command, platform.machine(), _processor()]).encode()
    name = hashlib.sha256(b"\0".join([*parts, told, version])).hexdigest()[:32]
    built = _cache() / f"{source.stem}-{name}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / built.name
            found = subprocess.run([*command, "-o", str(made), str(source)], capture_output=True, text=True, timeout=_SECONDS)
            if found.returncode != 0:
                raise Unavailable(f"{compiler} could not build {source.name}: {_first_error(found.stderr)}")
            os.replace(made, built)
    return built


def _openmp() -> list[str]:
    """What makes kernels share torch's threads: two pools of threads would wait for each other's processors."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-fopenmp", str(found[0])] if found else []


def _processor() -> str:
    """What ``-march=native`` depends on: caches are shared between machines, where homes are."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _cache() -> Path:
    """A folder of the user's own: what lies in it is loaded as code.

    Raises:
        Unavailable: somebody else could write there.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chansurg" / "kernels"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = root.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise Unavailable(f"others than its user can write to {root}")
    return root


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line]
    return (lines or text.splitlines() or ["no reason was given"])[0]
