"""``chansurg slice``: from a model with masks to a smaller model that computes the same."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from chansurg.cli.changes import Change, changes, changes_table, layers_at
from chansurg.cli.interrupts import stop_if_interrupted
from chansurg.cli.model_options import Arch, InputSize, Model, TrustPickle, existing_input, given_path, read_model, stem
from chansurg.cli.numbers import counted, counts_table, difference
from chansurg.cli.output_file import check_output, note_written
from chansurg.cli.reporting import Report, grid

if TYPE_CHECKING:
    from chansurg.surgery.journal import Entry

EXAMPLES = (
    "chansurg slice resnet20-pcs-finetuned.safetensors",
    "chansurg slice r20-ft.safetensors --residual coupled --freeze-salience -o r20-plain.safetensors",
    "chansurg slice r50-ft.safetensors --multiple-of 8 --dry-run",
)


def slice(
    report: Report,
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write.", show_default="MODEL-sliced.safetensors", parser=given_path),
    ] = None,
    residual: Annotated[
        str,
        typer.Option(
            "--residual",
            metavar="scatter|coupled",
            help="At residual additions: scatter adds what a branch has left into the stage; coupled keeps branch and stage alike.",
        ),
    ] = "scatter",
    freeze_salience: Annotated[
        bool, typer.Option("--freeze-salience", help="Replace each salience by its running value, and fold that away.")
    ] = False,
    multiple_of: Annotated[int, typer.Option("--multiple-of", metavar="N", help="Widths stay multiples of N.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Slice and check, and write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT whatever it holds. The input is never replaced.")] = False,
    arch: Arch = None,
    input_size: InputSize = None,
    trust_pickle: TrustPickle = False,
) -> None:
    """Remove the channels that a model's masks have let go of.

    The masked model and the sliced one are run on the same inputs; nothing is written that does not compute the same.
    """
    start = time.perf_counter()
    target = output or Path(f"{stem(model)}-sliced.safetensors")
    source = existing_input(model)
    if not dry_run:
        check_output(target, inputs=[] if source is None else [source], force=force, again=True)
    network = read_model(report, model, arch, input_size, trust_pickle=trust_pickle)

    import chansurg
    from chansurg.surgery.slicing.slicing import original_counts

    sliced = chansurg.slice(network, residual=residual, freeze_salience=freeze_salience, multiple_of=multiple_of)
    entry, original = chansurg.record_of(sliced).journal[-1], original_counts(network)
    found = changes(entry.edits, layers_at(network, entry.edits), layers_at(sliced, entry.edits))
    stop_if_interrupted()
    if not dry_run:
        chansurg.save(sliced, target, overwrite=force)
        note_written(target)
    seconds = time.perf_counter() - start
    proof = entry.results
    report.result(
        {
            "output": None if dry_run else str(target),
            "original": original,
            "before": dict(entry.before),
            "after": dict(entry.after),
            "max_abs_error": proof["max_abs_error"],
            "max_rel_error": proof["max_rel_error"],
            "masking_drift": proof["masking_drift"],
        },
        line="nothing was written" if dry_run else str(target),
        show=lambda: _show(report, entry, original, found, None if dry_run else target, seconds),
    )


def _show(report: Report, entry: Entry, original: Mapping[str, int], found: list[Change], target: Path | None, seconds: float) -> None:
    out, proof = report.out, entry.results
    out.print(changes_table(found, every=report.verbose))
    if report.verbose:
        _show_reasons(report, "removed", proof["reasons"])
        _show_reasons(report, "masked, and kept", proof["staying"])
    elif proof["staying"]:
        _show_kept(report, proof["staying"])
    out.print()
    out.print(counts_table(entry.before, entry.after, original=original))
    table = grid("", ">float32", ">float64")
    table.add_row("largest difference from the masked model, relative", *(difference(proof[f"max_rel_error{kind}"]) for kind in _KINDS))
    table.add_row("allowed", *(difference(proof[f"tolerance{kind}"]) for kind in _KINDS))
    out.print()
    out.print(table)
    sizes = ", ".join("x".join(map(str, size)) for size in proof["sizes"])
    report.say(f"on {counted(proof['images'], 'image')} of {sizes}")
    what = "Masking and freezing" if entry.options["freeze_salience"] else "Masking"
    report.say(f"{what} by itself moves the outputs by {100 * proof['masking_drift']:.3g} % on random images.")
    if target is None:
        out.print(f"A dry run: nothing was written ({seconds:.1f} s).")
    else:
        report.say(Text.assemble("wrote ", (str(target), "bold"), f" in {seconds:.1f} s"))


_KINDS = ("", "_float64")


def _show_reasons(report: Report, title: str, reasons: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    if not reasons:
        return
    report.out.print(f"\n{title}", style="dim")
    for path, found in reasons.items():
        for one in found:
            report.say(f"  {path} [{_runs(one['channels'])}]: {one['reason']}", style="dim")


def _show_kept(report: Report, staying: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """How many masked channels could not go, by reason, the most frequent ones."""
    numbers: dict[str, int] = {}
    for found in staying.values():
        for one in found:
            numbers[one["reason"]] = numbers.get(one["reason"], 0) + len(one["channels"])
    report.out.print(f"\nmasked, and kept ({sum(numbers.values())} channels; -v lists them)", style="dim")
    for reason in sorted(numbers, key=lambda reason: -numbers[reason])[:3]:
        report.say(f"  {numbers[reason]}: {reason}", style="dim")


def _runs(channels: Sequence[int]) -> str:
    """``0-3, 7``."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
