"""``chansurg convert``: the surgery, from a model file to a model file."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from chansurg.cli.calibration_options import (
    BatchSize,
    Calibrate,
    KeepDrift,
    MaxBlocks,
    Only,
    OnlyIfFaster,
    Refine,
    Runtime,
    Samples,
    Skip,
    TargetMacs,
    timing_options,
    without_images,
)
from chansurg.cli.changes import Change, changes, changes_table, layers_at, scaled_tensors
from chansurg.cli.choice_table import show_choice
from chansurg.cli.drift_table import show_drift
from chansurg.cli.interrupts import stop_if_interrupted
from chansurg.cli.left_alone import show_skipped
from chansurg.cli.model_options import Arch, InputSize, Model, Pretrained, TrustPickle, existing_input, given_path, read_model, stem
from chansurg.cli.numbers import broke_off, counted, counts_table
from chansurg.cli.output_file import check_output, note_written
from chansurg.cli.recipe_options import recipe_parameters
from chansurg.cli.reporting import Report
from chansurg.cli.timing_table import show_timing
from chansurg.surgery.drift import drift_of
from chansurg.surgery.recipe import find_recipe, flag
from chansurg.surgery.selecting.limits import Limits

if TYPE_CHECKING:
    from chansurg.surgery.journal import Entry
    from chansurg.surgery.plan import Plan

EXAMPLES = (
    "chansurg convert resnet50.pth --recipe pix",
    "chansurg convert resnet50.pth --recipe pix --mode downscale -o r50.safetensors",
    "chansurg convert resnet50 --pretrained --recipe pix --zeta 8 --dry-run",
    "chansurg convert resnet50.pth --recipe mod --calibrate imagenet/ --samples 512",
    "chansurg convert resnet50.pth --recipe slimconv --target-macs 0.75 --skip layer4",
    "chansurg convert resnet50.pth --recipe pix --only-if-faster --runtime onnxruntime --batch-size 8",
)
PARAMETERS = recipe_parameters


def convert(
    report: Report,
    model: Model,
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="What to do; `chansurg recipes` lists them.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write.", show_default="MODEL-RECIPE.safetensors", parser=given_path),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do and write nothing.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the layers that start anew, and of the choice of images.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT whatever it holds. The input is never replaced.")] = False,
    calibrate: Calibrate = None,
    samples: Samples = None,
    refine: Refine = None,
    only: Only = None,
    skip: Skip = None,
    max_blocks: MaxBlocks = None,
    target_macs: TargetMacs = None,
    keep_drift: KeepDrift = None,
    only_if_faster: OnlyIfFaster = False,
    runtime: Runtime = None,
    batch_size: BatchSize = None,
    arch: Arch = None,
    input_size: InputSize = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
    **recipe_options: Any,
) -> None:
    """Convert a model with a recipe.

    One file is written, and it carries everything needed to load it; a converted file can be converted again.
    """
    start = time.perf_counter()
    given = {name: value for name, value in recipe_options.items() if value is not None}
    find_recipe(recipe).options(given)
    limits = Limits(max_blocks, target_macs, keep_drift).given
    timing = timing_options(only_if_faster, runtime, batch_size)
    if calibrate is None and (samples is not None or refine is not None):
        raise without_images("--samples" if refine is None else "--refine", "--calibrate DATA", "Nothing was converted.")
    target = output or Path(f"{stem(model)}-{recipe}.safetensors")
    source = existing_input(model)
    if not dry_run:
        check_output(target, inputs=[] if source is None else [source], force=force, again=True)
    network = read_model(report, model, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)

    import chansurg
    from chansurg.surgery.calibrated import SAMPLES, check_refine
    from chansurg.surgery.images.opening import opened

    check_refine(refine, calibrate)
    images = opened(calibrate, chansurg.record_of(network).preprocessing, SAMPLES if samples is None else samples, seed)
    began = time.perf_counter()
    with report.progress("where to cut", "trials") if limits or timing else nullcontext() as progress:
        named: dict[str, Any] = {"only": only or (), "skip": skip or ()}
        plan = chansurg.plan(network, recipe, calibrate=images, seed=seed, progress=progress, **named, **timing, **limits, **given)
    planned = time.perf_counter() - began
    before = layers_at(network, plan.edits)
    with report.progress(f"calibrating on {counted(len(images), 'image')}", "parts") if images else nullcontext() as progress:
        network = chansurg.apply(network, plan, calibrate=images, refine=refine, inplace=True, seed=seed, progress=progress)
    entry = chansurg.record_of(network).journal[-1]
    found = changes(plan.edits, before, layers_at(network, plan.edits))
    state = network.state_dict()
    scaled = len(scaled_tensors(plan.edits, set(state) - {*entry.sliced, *entry.new, *entry.fitted}))
    kept = (entry.kept or 0) - scaled
    stop_if_interrupted()
    if not dry_run:
        chansurg.save(network, target, overwrite=force)
        note_written(target)
    seconds = time.perf_counter() - start
    report.result(
        {
            "output": None if dry_run else str(target),
            "recipe": plan.recipe,
            "options": dict(plan.options),
            "edits": [edit.as_json() for edit in plan.edits],
            "skipped": [skip.as_json() for skip in plan.skipped],
            "before": dict(entry.before),
            "after": dict(entry.after),
            "uncounted": list(entry.uncounted),
            "drift": entry.results["drift"],
            "calibration": entry.results.get("calibration"),
            "choice": entry.results.get("choice"),
            "timing": entry.results.get("timing"),
        },
        line="nothing was written" if dry_run else str(target),
        show=lambda: _show(report, plan, entry, found, (kept, scaled), None if dry_run else target, (planned, seconds)),
    )


def _show(
    report: Report,
    plan: Plan,
    entry: Entry,
    found: list[Change],
    old: tuple[int, int],
    target: Path | None,
    took: tuple[float, float],
) -> None:
    out = report.out
    planned, seconds = took
    options = " ".join(f"{flag(name)} {value}" for name, value in plan.options.items() if value is not None)
    report.say(Text.assemble((plan.recipe, "bold"), f": {counted(len(plan.sites), 'site')}, {counted(len(plan.edits), 'edit')}"))
    report.say(f"{options}\n", style="dim")
    if plan.timing is not None:
        show_timing(report, plan.timing)
    if plan.choice is not None:
        show_choice(report, plan.choice, planned)
    out.print(changes_table(found, every=report.verbose))
    show_skipped(report, [skip.as_json() for skip in plan.skipped])
    out.print()
    out.print(counts_table(entry.before, entry.after))
    if stopped := broke_off(entry.uncounted):
        report.say(stopped, style="dim")
    drift = drift_of(entry.results)
    if drift is not None:
        show_drift(report, drift, title="drift before any training")
    kept = f"{old[0]} kept, {old[1]} scaled" if old[1] else f"{old[0]} kept"
    fitted = f", {len(entry.fitted)} fitted" if entry.fitted else ""
    out.print(f"\ntensors: {kept}{fitted}, {len(entry.sliced)} sliced, {len(entry.new)} new, {len(entry.removed)} removed")
    if target is None:
        out.print(f"A dry run: nothing was written ({seconds:.1f} s).")
    else:
        report.say(Text.assemble("wrote ", (str(target), "bold"), f" in {seconds:.1f} s"))
