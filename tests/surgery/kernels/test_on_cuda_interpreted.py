"""The kernels for CUDA, without a CUDA device: what they compute, in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chansurg.surgery.kernels.operators import HAS_TRITON

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")
def test_the_kernels_for_cuda_agree_with_the_plain_forms() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    program = [sys.executable, "-m", "tests.surgery.kernels.interpreted"]
    found = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[0]) > 30
