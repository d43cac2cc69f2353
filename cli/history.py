"""``chansurg history``: what was done to a model, read from its file's header alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from chansurg.cli.drift_table import drift_line, show_drift
from chansurg.cli.model_options import given_path
from chansurg.cli.numbers import broke_off, counted, counts_table, difference
from chansurg.cli.reporting import Report
from chansurg.surgery.drift import drift_of, ran_on
from chansurg.surgery.edits import Scale
from chansurg.surgery.recipe import flag
from chansurg.surgery.training.settings import Settings

if TYPE_CHECKING:
    from chansurg.surgery.journal import Entry, Record

EXAMPLES = ("chansurg history resnet50-pix.safetensors", "chansurg history resnet50-pix.safetensors --json")


def history(
    report: Report,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file, or an export.", show_default=False, parser=given_path)],
) -> None:
    """What was done to a model, oldest first.

    Recipe, options, counts before and after, and the file it came from; read from the file's header alone.
    """
    import chansurg

    record = chansurg.history(model)
    steps = " > ".join(entry.recipe for entry in record.journal) or "nothing was done to it"
    report.result(_document(model, record), line=f"{record.architecture or 'unknown'}: {steps}", show=lambda: _show(report, model, record))


def _document(model: Path, record: Record) -> dict[str, Any]:
    document = record.as_json()
    architecture = record.architecture
    document["architecture"] = None if architecture is None else str(architecture)
    document["arguments"] = None if architecture is None else dict(architecture.kwargs)
    return {"file": str(model), **document}


def _show(report: Report, model: Path, record: Record) -> None:
    out = report.out
    out.print(Text(str(model), style="bold"), soft_wrap=True)
    if record.architecture is None and not record.journal:
        out.print("It has no journal: chansurg did not write it, or nothing was done to it. `chansurg inspect` tells what it is.")
        return
    arguments = ", ".join(f"{key}={value}" for key, value in (record.architecture.kwargs if record.architecture else {}).items())
    name = str(record.architecture or "a network of the caller's own")
    size = "x".join(str(length) for length in record.preprocessing.input_size)
    out.print(f"architecture  {name}{f' ({arguments})' if arguments else ''}, input {size}", soft_wrap=True)
    if not record.journal:
        out.print("journal       empty: nothing was done to it")
    for number, entry in enumerate(record.journal, 1):
        _show_entry(report, number, entry)


def _show_entry(report: Report, number: int, entry: Entry) -> None:
    options = " ".join(f"{flag(name)} {value}" for name, value in _told_options(entry).items() if value is not None)
    report.say(Text.assemble(f"\n{number}. ", (f"{entry.recipe} ", "bold"), options))
    report.say(f"   from {_parent(number, entry)}, seed {entry.seed}, {counted(len(entry.edits), 'edit')}")
    if entry.kind != "finetune":
        report.out.print(f"   tensors: {_tensors(entry)}")
    if entry.results:
        try:
            for line in _reached(entry):
                report.say(f"   {line}")
        except (KeyError, TypeError, ValueError, AttributeError):  # a file may hold anything there
            report.say("   What it came to is not told in a form that is known here.")
    if entry.before and entry.after:
        report.out.print(Padding.indent(counts_table(entry.before, entry.after), 3))
    if stopped := broke_off(entry.uncounted):
        report.say(f"   {stopped}", style="dim")
    if report.verbose and (drift := drift_of(entry.results)) is not None:
        show_drift(report, drift)
        report.out.print()
    if report.verbose:
        for edit in entry.edits:
            report.out.print(f"   {edit.op:<7} {edit.path}", soft_wrap=True)
        sliced = set(entry.sliced)
        handed_on = [name for name in entry.sources if name not in sliced]
        for kind, names in (("kept", handed_on), ("sliced", entry.sliced), ("new", entry.new), ("removed", entry.removed)):
            for name in names:
                source = f" (from {entry.sources[name]})" if name in entry.sources else ""
                report.out.print(f"   {kind:<7} {name}{source}", soft_wrap=True)


def _tensors(entry: Entry) -> str:
    """How many tensors were kept, sliced, made or removed; entries of older schemas do not count the kept ones."""
    fitted = len(entry.fitted) or None
    counts = {"kept": entry.kept, "fitted": fitted, "sliced": len(entry.sliced), "new": len(entry.new), "removed": len(entry.removed)}
    told = [", ".join(f"{number} {what}" for what, number in counts.items() if number is not None)]
    if scaled := len({edit.path for edit in entry.edits if isinstance(edit, Scale)}):
        told.append(f"those of {counted(scaled, 'layer')} scaled")
    if copied := sum(1 for name, source in entry.sources.items() if name != source):
        told.append(f"{copied} taken from other layers")
    return "; ".join(told if entry.kept is not None else [*told, "all others kept"])


def _told_options(entry: Entry) -> Mapping[str, Any]:
    """The options; of a training run's many settings those that are not at their defaults."""
    if entry.kind != "finetune":
        asked = entry.results.get("asked")
        return (
            {**entry.options, **{name: _told(name, value) for name, value in asked.items()}}
            if isinstance(asked, Mapping)
            else entry.options
        )
    usual = Settings().as_json()
    return {name: value for name, value in entry.options.items() if name not in usual or value != usual[name]}


def _told(name: str, value: Any) -> Any:
    return f" {flag(name)} ".join(map(str, value)) if isinstance(value, list) else value


def _reached(entry: Entry) -> list[str]:
    """What a training run came to, what the proof of a slicing found, or how far a conversion drifted."""
    found = entry.results
    if entry.kind == "convert":
        return _converted(entry)
    if entry.kind == "slice":
        errors = f"{difference(found['max_rel_error'])} in float32, {difference(found['max_rel_error_float64'])} in float64"
        return [f"checked on {counted(found['images'], 'image')}; largest difference from the masked model {errors}, relative"]
    parts = [f"{counted(found['epochs'], 'epoch')}, {counted(found['steps'], 'step')}, {counted(found['images'], 'image')}"]
    if "val_top1" in found:
        parts.append(f"top-1 {found['val_top1']:.2f} % on val")
    if "budget" in found:
        budget = found["budget"]
        parts.append(
            f"{budget['quantity'].replace('_', ' ')} {budget['reached']:.3f} of the original, for a target of {budget['target']:g}"
        )
    return ["; ".join(parts)]


def _converted(entry: Entry) -> list[str]:
    """Raises ValueError where it does not tell of a drift."""
    found, told = entry.results, []
    if "choice" in found:
        choice = found["choice"]
        taken = sum(1 for site in choice["sites"] if site["taken"])
        told.append(f"{taken} of {counted(len(choice['sites']), 'site')} taken, on {ran_on(choice['kind'], choice['inputs'])}")
    if "timing" in found:
        timing = found["timing"]
        gained = sum(1 for site in timing["sites"] if site["faster"])
        told.append(f"{gained} of {counted(len(timing['sites']), 'site')} faster in {timing['runtime']}")
    if "calibration" in found:
        told.append(f"calibrated on {counted(found['calibration']['images'], 'image')}")
    drift = drift_of(found)
    if drift is None:
        raise ValueError("no drift")
    return [*told, drift_line(drift)]


def _parent(number: int, entry: Entry) -> str:
    """What the conversion started from, as far as the journal knows."""
    if entry.parent_file or entry.parent_sha256:
        return f"{entry.parent_file or 'a file'} (sha256 {(entry.parent_sha256 or '')[:12]})"
    before = "a network in memory, no file" if number == 1 else f"the result of {number - 1}, in memory"
    return before if entry.untouched or number == 1 else f"{before}, trained in between"
