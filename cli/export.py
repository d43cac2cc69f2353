"""``chansurg export``: a file that other programs run, checked before it counts as written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from chansurg.cli.interrupts import stop_if_interrupted
from chansurg.cli.model_options import Arch, InputSize, Model, Pretrained, TrustPickle, existing_input, given_path, read_model, stem
from chansurg.cli.numbers import counted, difference
from chansurg.cli.output_file import check_output, note_written
from chansurg.cli.reporting import Report, grid
from chansurg.surgery.listing import path_list

if TYPE_CHECKING:
    from chansurg.surgery.delivery.exporting import Export

EXAMPLES = (
    "chansurg export resnet50-pix.safetensors",
    "chansurg export resnet50-pix.safetensors --format pt2 -o resnet50.pt2",
    "chansurg export r20.safetensors --format aoti --batch-size 1",
)
_SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "aoti": "-aoti.pt2"}


def export(
    report: Report,
    model: Model,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="onnx|pt2|aoti",
            help="ONNX in one file; an archive of torch.export; or code compiled ahead of time for this kind of machine.",
        ),
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write.", show_default="MODEL.onnx or MODEL.pt2", parser=given_path),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", help="Fix the batch axis.", show_default="it stays free")
    ] = None,
    opset: Annotated[int, typer.Option("--opset", metavar="N", help="Version of ONNX's operators.")] = 18,
    optimize: Annotated[bool, typer.Option("--optimize/--no-optimize", help="Fold norms and simplify first.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT whatever it holds. The input is never replaced.")] = False,
    arch: Arch = None,
    input_size: InputSize = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """Write a model for other programs to run.

    The file is run against the model, in several batch sizes, before it takes its name. It carries the model's journal.
    """
    start = time.perf_counter()
    target = output or Path(f"{stem(model)}{_SUFFIXES.get(format, '.onnx')}")
    source = existing_input(model)
    check_output(target, inputs=[] if source is None else [source], force=force)
    network = read_model(report, model, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)

    import chansurg

    written = chansurg.export(network, target, format, batch_size=batch_size, opset=opset, optimized=optimize, overwrite=force)
    note_written(target)
    stop_if_interrupted()
    seconds = time.perf_counter() - start
    report.result(
        written.as_json(),
        line=f"{target}  relative error {difference(written.max_rel_error)}",
        show=lambda: _show(report, written, seconds),
    )


def _show(report: Report, written: Export, seconds: float) -> None:
    out, done = report.out, written.optimization
    if done is not None:
        out.print(
            f"optimised for {done.runtime}: {counted(len(done.folded), 'norm')} folded, {counted(len(done.removed), 'call')} without "
            f"effect removed, {counted(len(done.forms), 'layer')} in a form of its own"
        )
        reasons: dict[str, list[str]] = {}
        for path, reason in done.left.items():
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items() if report.verbose else ():
            report.say(f"  left alone: {path_list(paths, limit=None)}: {reason}", style="dim")
    table = grid("", ">")
    shape = "x".join("B" if side is None else str(side) for side in written.input_shape)
    table.add_row("input", f"{shape} {written.dtype}")
    table.add_row("largest difference from the model, relative", difference(written.max_rel_error))
    table.add_row("allowed", difference(written.tolerance))
    out.print(table)
    report.say(f"run on {', '.join(map(str, written.batch_sizes[:-1] or written.batch_sizes))}" + _last(written.batch_sizes))
    size = f"{written.bytes / 2**20:.1f} MiB"
    report.say(Text.assemble("wrote ", (str(written.output), "bold"), f", {size}, in {seconds:.1f} s"))


def _last(sizes: tuple[int, ...]) -> str:
    return f" and {sizes[-1]} random images" if len(sizes) > 1 else " random images" if sizes[0] > 1 else " random image"
