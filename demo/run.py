"""``make demo``: a small trained network's whole life: converted by PiX and recovered; converted by PCS, shrunk, and sliced.

Every command that is shown is run as shown; the files stay in ``demo-output/`` to be looked at.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import chansurg
from chansurg.cli.application import run
from demo.digits import HELD_OUT, write_image_folder

OUTPUT = Path("demo-output")
ORIGINAL = Path("demo/digits-resnet.safetensors")
DATA = OUTPUT / "digits"
PIX, PIX_CALIBRATED, PIX_TRAINED = (OUTPUT / f"{name}.safetensors" for name in ("pix", "pix-calibrated", "pix-trained"))
PCS, PCS_TRAINED = OUTPUT / "pcs.safetensors", OUTPUT / "pcs-trained.safetensors"
SMALL, PLAIN = OUTPUT / "pcs-small.safetensors", OUTPUT / "pcs-plain.safetensors"
FACTORY = "demo.digits:network"
ARCH = ("--arch", FACTORY)
TRAINING = ("--data", DATA, "--augment", "none", "--val-every", "5")
TEACHER = ("--teacher", ORIGINAL, "--teacher-arch", FACTORY)

console = Console(highlight=False)


def title(text: str) -> None:
    """Begin a part of the story."""
    console.print(f"\n[bold]{text}[/]", soft_wrap=True)


def command(*arguments: str | Path) -> None:
    """Show a chansurg command and run it."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold cyan]$ chansurg {shlex.join(words)}[/]", soft_wrap=True)
    code = run(words)
    if code:
        sys.exit(code)


def summary() -> Table:
    """Accuracy and cost of every network on the way."""
    table = Table(title=f"digits, {HELD_OUT} held-out pictures", title_style="bold")
    for column in ("", "top-1", "parameters", "MACs", "MACs / original"):
        table.add_column(column, justify="left" if not column else "right")
    files = {
        "original": ORIGINAL,
        "PiX, converted": PIX,
        "PiX, calibrated": PIX_CALIBRATED,
        "PiX, fine-tuned": PIX_TRAINED,
        "PCS, converted": PCS,
        "PCS, fine-tuned": PCS_TRAINED,
        "PCS, sliced": SMALL,
        "PCS, sliced, frozen": PLAIN,
    }
    original = 0
    for name, file in files.items():
        network = chansurg.load(file, arch=FACTORY)
        cost, result = chansurg.count(network), chansurg.evaluate(network, DATA)
        original = original or cost.macs
        table.add_row(name, f"{result.top1:.1f} %", f"{cost.params:,}", f"{cost.macs:,}", f"{cost.macs / original:.3f}")
    return table


def main() -> None:
    """Run the demonstration from the repository's root."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # so small a network would mostly wait for a second thread
    shutil.rmtree(OUTPUT, ignore_errors=True)
    write_image_folder(DATA)
    command("inspect", ORIGINAL, *ARCH)
    command("evaluate", ORIGINAL, *ARCH, "--data", DATA)

    title("PiX takes the place of the squeezing convolutions; its new layers know nothing of the images.")
    command("convert", ORIGINAL, *ARCH, "--recipe", "pix", "-o", PIX)
    command("evaluate", PIX, *ARCH, "--data", DATA)
    title("Calibrated with images, without their labels, it starts from what the original computes; fine-tuning does the rest.")
    command("convert", ORIGINAL, *ARCH, "--recipe", "pix", "--calibrate", DATA, "-o", PIX_CALIBRATED)
    command("evaluate", PIX_CALIBRATED, *ARCH, "--data", DATA)
    command("finetune", PIX_CALIBRATED, *ARCH, *TRAINING, "--epochs", "15", *TEACHER, "-o", PIX_TRAINED)

    title("PCS changes nothing at first; training then shrinks channels to zero, and slicing takes them out.")
    command("convert", ORIGINAL, *ARCH, "--recipe", "pcs", "-o", PCS)
    command("verify", ORIGINAL, PCS, *ARCH)
    command("finetune", PCS, *ARCH, *TRAINING, "--epochs", "30", "--target-macs", "0.5", *TEACHER, "-o", PCS_TRAINED)
    command("slice", PCS_TRAINED, *ARCH, "-o", SMALL)
    command("evaluate", SMALL, *ARCH, "--data", DATA)
    title("The same, with the saliences frozen and folded into the norms: a plain, narrower residual network.")
    command("slice", PCS_TRAINED, *ARCH, "--freeze-salience", "--residual", "coupled", "-q", "-o", PLAIN)
    command("history", PLAIN)

    console.print()
    console.print(summary())
    console.print(f"{time.perf_counter() - start:.0f} s in all; the files are in {OUTPUT}/", style="dim")


if __name__ == "__main__":
    main()
