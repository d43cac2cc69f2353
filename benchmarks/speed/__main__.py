"""Does smaller mean faster? Converted networks beside the ones they came from, in every runtime, as one table.

    python -m benchmarks.speed --out results [--networks resnet50,resnet18] [--rows pix,mod] [--runtimes eager,aoti] [--batch-sizes 1,8]

Run from the root of the checkout, on a machine with nothing else to do. Weights are random: they do not change how long a network takes.
Both sides of every ratio get the same treatment, and each its better layout. Each finished file in the folder is not measured again; one
in which the machine was too noisy to tell a ratio is tried again by the next call. ``table.md`` is written anew after every row.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path

import torch

import chansurg
from benchmarks.result_folder import ResultFolder
from benchmarks.speed.rows import NETWORKS, ROWS, original
from benchmarks.speed.table import render
from chansurg.surgery.delivery.benching import DTYPES
from chansurg.surgery.delivery.runtimes import RUNTIMES


def main() -> None:
    """Measure what is missing, and write the table."""
    options = _options()
    settings = {name: getattr(options, name) for name in ("input_size", "batch_sizes", "device", "dtype", "threads", "training")}
    folder = ResultFolder(options.out, {**settings, "torch": torch.__version__})
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for network in options.networks.split(","):
        for row in options.rows.split(",") if options.rows else NETWORKS[network]:
            for runtime in options.runtimes.split(","):
                file = folder.named(network, row.replace("/", "_"), runtime)
                if not is_told(file):
                    folder.write(file, measure(network, row, runtime, options))
                    (options.out / "table.md").write_text(render(folder.documents()))
                    print(f"{network} {row} {runtime}: done", flush=True)
    print(render(folder.documents()), end="")


def is_told(file: Path) -> bool:
    """Whether the file is there, and no ratio in it was left untold for noise."""
    return file.exists() and not any(row["noise"] for row in json.loads(file.read_text())["results"])


def measure(network: str, row: str, runtime: str, options: argparse.Namespace) -> dict[str, object]:
    """The document of one network, row and runtime; with the reason, and without results, where the recipe has nothing to do there."""
    document: dict[str, object] = {"network": network, "row": row, "runtime": runtime}
    before = original(network, options.input_size)
    try:
        after = ROWS[row].make(before)
    except chansurg.Refusal as refusal:
        return {**document, "results": [], "refused": refusal.what}
    found = chansurg.bench(
        after,
        before,
        runtimes=[runtime],
        batch_sizes=[int(size) for size in options.batch_sizes.split(",")],
        devices=[options.device],
        dtypes=[options.dtype],
        threads=options.threads,
        training=options.training,
        seconds=options.seconds,
    )
    return {**document, **found.as_json()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, outside the repository")
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"of: {', '.join(NETWORKS)}")
    parser.add_argument("--rows", help=f"of: {', '.join(ROWS)}; else those that are meant for the network")
    parser.add_argument("--runtimes", default="eager,compile,onnxruntime,aoti", help=f"of: {', '.join(RUNTIMES)}")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--training", action="store_true", help="time training steps, in eager and compile")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a ratio may take to become known")
    given = parser.parse_args()
    for name, known in (("networks", NETWORKS), ("rows", ROWS), ("runtimes", RUNTIMES)):
        unknown = [one for one in (getattr(given, name) or "").split(",") if one and one not in known]
        if unknown:
            parser.error(f"--{name}: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return given


if __name__ == "__main__":
    main()
