"""``make demo``: convert a small trained network with PiX, look at it from all sides, and win its accuracy back.

Every command that is shown is run as shown; the files stay in ``demo-output/`` to be looked at.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

import chansurg
from chansurg.cli.application import run
from demo.digits import write_image_folder
from demo.training import train

OUTPUT = Path("demo-output")
ORIGINAL = Path("demo/digits-resnet.safetensors")
DATA = OUTPUT / "digits"
CONVERTED = OUTPUT / "digits-resnet-pix.safetensors"
RECOVERED = OUTPUT / "digits-resnet-pix-recovered.safetensors"
FACTORY = "demo.digits:network"
ARCH = ("--arch", FACTORY, "--input-size", "8")
EPOCHS = 15

console = Console(highlight=False)


def command(*arguments: str | Path) -> None:
    """Show a chansurg command and run it."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold cyan]$ chansurg {shlex.join(words)}[/]", soft_wrap=True)
    code = run(words)
    if code:
        sys.exit(code)


def recover() -> None:
    """Train the converted network in a plain PyTorch loop and save it; the journal travels along."""
    model = chansurg.load(CONVERTED, arch=FACTORY)
    console.print(f"\n[bold]Recovering: {EPOCHS} epochs of an ordinary PyTorch training loop on the converted network[/]")
    start = time.perf_counter()

    def report(epoch: int, loss: float) -> None:
        if epoch % 5 == 0:
            console.print(f"epoch {epoch:2}  loss {loss:.4f}")

    train(model, epochs=EPOCHS, learning_rate=0.05, report=report)
    chansurg.save(model, RECOVERED)
    console.print(f"{time.perf_counter() - start:.1f} s; wrote {RECOVERED}")


def summary() -> Table:
    """Accuracy and cost of the three networks."""
    table = Table(title="digits, 500 held-out pictures", title_style="bold")
    for column in ("", "top-1", "parameters", "MACs"):
        table.add_column(column, justify="left" if not column else "right")
    entry = chansurg.history(CONVERTED).journal[-1]
    rows: tuple[tuple[str, Path, Mapping[str, int]], ...] = (
        ("original", ORIGINAL, entry.before),
        ("converted", CONVERTED, entry.after),
        ("recovered", RECOVERED, entry.after),
    )
    for name, file, counts in rows:
        result = chansurg.evaluate(chansurg.load(file, arch=FACTORY, input_size=(8,)), DATA)
        table.add_row(name, f"{result.top1:.1f} %", f"{counts['params']:,}", f"{counts['macs']:,}")
    return table


def main() -> None:
    """Run the demonstration from the repository's root."""
    start = time.perf_counter()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    write_image_folder(DATA)
    command("inspect", ORIGINAL, *ARCH)
    command("evaluate", ORIGINAL, "--data", DATA, *ARCH)
    command("convert", ORIGINAL, "--recipe", "pix", *ARCH, "-o", CONVERTED)
    command("evaluate", CONVERTED, "--data", DATA, "--arch", FACTORY)
    recover()
    command("evaluate", RECOVERED, "--data", DATA, "--arch", FACTORY)
    command("history", RECOVERED)
    console.print()
    console.print(summary())
    console.print(f"{time.perf_counter() - start:.0f} s in all; the files are in {OUTPUT}/", style="dim")


if __name__ == "__main__":
    main()
