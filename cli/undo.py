"""``chansurg undo``: the very file that a converted one came from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chansurg.cli.model_options import given_path
from chansurg.cli.output_file import check_output, note_written
from chansurg.cli.reporting import Report

EXAMPLES = (
    "chansurg undo resnet50-pix.safetensors",
    "chansurg undo resnet50-pix.safetensors --base downloads/resnet50.pth",
)


def undo(
    report: Report,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A converted model file.", show_default=False, parser=given_path)],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="FILE",
            help="The file it came from, where that does not lie beside it.",
            show_default=False,
            parser=given_path,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where to write.", show_default=False, parser=given_path)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    discard_training: Annotated[bool, typer.Option("--discard-training", help="Go back although the network was trained since.")] = False,
) -> None:
    """Find the file that a converted model came from, or copy it.

    It is known by its hash, so what is given back is exactly what was converted. Without -o its path is told and nothing is written.
    """
    if output is not None:
        check_output(output, inputs=[path for path in (model, base) if path is not None], force=force)

    import chansurg

    found = chansurg.undo(model, base=base, output=output, discard_training=discard_training)
    note_written(output)
    told = f"{model} was made from {found}" if output is None else f"wrote {found}, the file that {model} was made from"
    report.result({"output": str(found)}, line=str(found), show=lambda: report.out.print(told, soft_wrap=True))
