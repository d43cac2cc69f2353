"""How much accuracy comes back: every recipe beside the network itself, random weights, and pruning, trained equally.

    python -m benchmarks.recovery --out results [--networks resnet20,resnet56] [--seeds 0,1,2] [--rows dense,pcs] [--epochs 30]
    python -m benchmarks.recovery --out quick --quick
    python -m benchmarks.recovery --out digits --networks resnet18-digits --models FOLDER --data FOLDER/digits --augment none

A network is ``NAME.safetensors`` in the folder of models, or ``NAME-cifar10jpeg.safetensors``. Run from the root of the checkout. Each
finished row is one file in the folder and is not run again; an interrupted one goes on where it stopped. The table and the plot are written
anew after every row. Needs torch-pruning and matplotlib, and the networks and images in ``../shared``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

from torch import nn

import chansurg
from benchmarks.recovery import networks
from benchmarks.recovery.plot import draw
from benchmarks.recovery.results import ResultFolder
from benchmarks.recovery.rows import ROWS, Subject
from benchmarks.recovery.running import run_row
from benchmarks.recovery.subset import write_subset
from benchmarks.recovery.table import render

SHARED = Path("..") / "shared"
QUICK = {
    "networks": "resnet20",
    "rows": "dense,pcs,slimconv,magnitude",
    "seeds": "0",
    "epochs": 10,
    "images": 1000,
    "batch_size": 20,
    "lr": 0.015,
}


def main() -> None:
    """Run what is missing, and write the table and the plot."""
    options = _options()
    settings: dict[str, Any] = {"epochs": options.epochs, "batch_size": options.batch_size}
    settings |= {name: value for name in ("lr", "distill_blocks", "augment") if (value := getattr(options, name)) is not None}
    settings |= {"precision": options.precision, "channels_last": True}
    others = ("images", "samples", "target_macs", "shrink", "latency_batch")
    folder = ResultFolder(options.out, {**settings, **{name: getattr(options, name) for name in others}})
    data = options.data
    if options.images is not None:
        data = options.out / "subset.zip"
        write_subset(options.data, data, options.images)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="torch_pruning")
    failed: list[str] = []
    for network in options.networks.split(","):
        for seed in map(int, options.seeds.split(",")):
            for name in options.rows.split(","):
                if folder.file(network, name, seed).exists():
                    continue
                original = _original(options.models, network)
                subject = Subject(original, data, seed, options.target_macs, options.shrink, options.samples)
                try:
                    result = run_row(name, network, subject, folder, settings, options.latency_batch)
                except chansurg.ChansurgError as error:  # the other rows have their turn
                    failed.append(f"{network} {name} seed {seed}: {error}")
                    print(failed[-1], flush=True)
                    continue
                folder.add(result)
                share = result.macs / result.original_macs
                print(f"{network} {name} seed {seed}: {result.top1:.2f} % at {share:.1%}, {result.seconds / 60:.1f} min", flush=True)
                _report(folder)
    if results := _report(folder):
        print(results, end="")
    if failed:
        raise SystemExit("These rows failed, and will be tried again:\n" + "\n".join(failed))


def _original(models: Path, network: str) -> nn.Module:
    """The trained network of this name."""
    factory = f"benchmarks.recovery.networks:{network}" if hasattr(networks, network) else None
    file = models / f"{network}.safetensors"
    return chansurg.load(file if file.exists() else models / f"{network}-cifar10jpeg.safetensors", arch=factory)


def _report(folder: ResultFolder) -> str:
    """Write table and plot, where there is any result; gives the table."""
    titles, results = {name: row.title for name, row in ROWS.items()}, folder.all()
    if not results:
        return ""
    table = render(results, titles)
    (folder.path / "table.md").write_text(table)
    draw(results, titles, folder.path / "plot.png")
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, outside the repository")
    parser.add_argument("--networks", default="resnet20,resnet56")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=30, help="0 measures what conversions keep before any training")
    parser.add_argument("--images", type=int, help="train on this many images, and validate on as many")
    parser.add_argument("--samples", type=int, default=1024, help="training images to calibrate with")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--distill-blocks", type=float, help="weight of the teacher's block outputs, beside its logits")
    parser.add_argument("--augment", help="of the training images; none for digits, which must not be mirrored")
    parser.add_argument("--precision", default="fp32", help="of the forward pass in training: fp32, bf16 or fp16")
    parser.add_argument("--target-macs", type=float, default=0.43, help="share of the original's; 17.6 M of ResNet-20's 41 M are 0.43")
    parser.add_argument("--shrink", default="1/2")
    parser.add_argument("--latency-batch", type=int, default=1)
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "cifar10.zip")
    parser.add_argument("--quick", action="store_true", help="few rows and images: at most 10 minutes on 2 cores")
    given = parser.parse_args()
    if given.quick:
        parser.set_defaults(**QUICK)
        given = parser.parse_args()
    unknown = [name for name in given.rows.split(",") if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return given


if __name__ == "__main__":
    main()
