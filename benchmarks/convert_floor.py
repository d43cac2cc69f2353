"""What `chansurg convert resnet50.pth` costs beyond what nobody can avoid.

The floor is a process that imports torch and torchvision, loads the same state dict and saves it again. Both are whole processes, run in
turn; wall time and peak memory come from the operating system's own account of each. Prints the median of each and the ratio pair by pair.

    python benchmarks/convert_floor.py [--runs 7] [--recipe-options "--zeta 4"]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from chansurg.surgery.delivery.timing import in_turn

FLOOR = """
import sys
import torch, torchvision
torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""


def run(command: list[str]) -> tuple[float, float]:
    """Wall time in seconds and peak resident memory in MB of one process."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    if status:
        raise SystemExit(f"{command[:4]} failed with status {status}")
    return elapsed, usage.ru_maxrss / 1024


def main() -> None:
    """Time both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="counted pairs, after one that is not counted")
    parser.add_argument("--recipe-options", default="--zeta 4")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "resnet50.pth"
        make = "import sys, torch, torchvision; torch.save(torchvision.models.resnet50(weights=None).state_dict(), sys.argv[1])"
        subprocess.run([sys.executable, "-c", make, str(checkpoint)], check=True)
        floor = [sys.executable, "-c", FLOOR, str(checkpoint), str(Path(folder) / "copy.pth")]
        output = str(Path(folder) / "pix.safetensors")
        convert = [sys.executable, "-m", "chansurg", "convert", str(checkpoint), "--recipe", "pix", "-q", "-o", output, "--force"]
        convert += arguments.recipe_options.split()
        taken = in_turn([partial(run, floor), partial(run, convert)], rounds=arguments.runs)
    for index, (name, unit, aim) in enumerate((("wall time", "s", 1.3), ("peak memory", "MB", 1.2))):
        floors, converts = ([run[index] for run in runs] for runs in taken)
        ratio = statistics.median(b / a for a, b in zip(floors, converts, strict=True))
        print(
            f"{name:12s} floor {statistics.median(floors):8.2f} {unit:2s} ({min(floors):.2f} to {max(floors):.2f})   "
            f"convert {statistics.median(converts):8.2f} {unit:2s} ({min(converts):.2f} to {max(converts):.2f})   "
            f"ratio {ratio:.2f}, aim {aim}"
        )


if __name__ == "__main__":
    main()
