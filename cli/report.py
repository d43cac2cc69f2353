"""``chansurg report``: models, what was done to them and what came of it, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from chansurg.cli.model_options import Arch, InputSize, TrustPickle, existing_input, given, given_path, read_model
from chansurg.cli.numbers import counted
from chansurg.cli.output_file import check_output, note_written
from chansurg.cli.reporting import Report

EXAMPLES = (
    "chansurg report resnet50-pix-finetuned.safetensors -o report.html",
    "chansurg report resnet50.pth pix.safetensors mod.safetensors --speed speed.json -o report.html",
)


def report(
    report: Report,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="Model files, or architectures' names.", show_default=False, parser=given),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The page to write.", parser=given_path)] = Path(
        "report.html"
    ),
    speed: Annotated[
        list[Path] | None,
        typer.Option("--speed", metavar="FILE", help="What `bench … --json` printed; repeatable.", show_default=False, parser=given_path),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Of the page.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT whatever it holds. Models are never replaced.")] = False,
    arch: Arch = None,
    input_size: InputSize = None,
    trust_pickle: TrustPickle = False,
) -> None:
    """One self-contained page about models.

    Counts, channels of every layer, journal, drift, accuracy, training curves (from the run folders beside the files) and speed. Nothing
    in it is fetched from anywhere.
    """
    read = [file for model in models if (file := existing_input(model)) is not None]
    check_output(output, inputs=[*read, *(speed or [])], force=force)
    networks = [read_model(report, model, arch, input_size, trust_pickle=trust_pickle) for model in models]

    import chansurg

    chansurg.report(networks, output, names=models, speeds=speed or [], title=title, overwrite=force)
    note_written(output)
    report.result(
        {"output": str(output), "models": models, "speeds": [str(file) for file in speed or []]},
        line=str(output),
        show=lambda: report.say(Text.assemble("wrote ", (str(output), "bold"), f", {counted(len(models), 'model')}")),
    )
