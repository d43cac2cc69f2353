"""The options of ``convert`` about images to calibrate with, and about where to cut."""

from __future__ import annotations

from typing import Annotated

import typer

from chansurg.cli.model_options import given
from chansurg.surgery.errors import InputError

FITTING = "Keeping what was learned"
WHERE = "Where to cut"

Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate",
        metavar="DATA",
        help="Fit the converted layers to what the original makes of these images: a folder, a zip, or NAME:FOLDER for a data set of "
        "torchvision's. Labels are not needed; of a data set only train/ is read.",
        rich_help_panel=FITTING,
        show_default=False,
        parser=given,
    ),
]
Samples = Annotated[
    int | None,
    typer.Option("--samples", metavar="N", help="Images of DATA that are used.", rich_help_panel=FITTING, show_default="1024"),
]
Refine = Annotated[
    int | None,
    typer.Option(
        "--refine",
        metavar="STEPS",
        help="Steps of distillation, block by block, behind the fits; 0 for none.",
        rich_help_panel=FITTING,
        show_default="200, fewer for large models",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="PATTERN",
        help="Convert no other sites than these: a path, or a pattern with * and ?, of sites or of modules around them. May be repeated.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip", metavar="PATTERN", help="Leave these sites as they are. May be repeated.", rich_help_panel=WHERE, show_default=False
    ),
]
MaxBlocks = Annotated[
    int | None,
    typer.Option(
        "--max-blocks",
        metavar="N",
        help="Convert N sites at most: those that drift least for what they save.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
TargetMacs = Annotated[
    float | None,
    typer.Option(
        "--target-macs",
        metavar="SHARE",
        help="Convert as few sites as bring the MACs down to this share of the original's.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
KeepDrift = Annotated[
    float | None,
    typer.Option(
        "--keep-drift",
        metavar="X",
        help="Convert as many sites as keep the relative error of the outputs within X.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]


def without_images(option: str, data: str, not_done: str) -> InputError:
    """What to say where an option tells how to use images, and ``data``, which names them, was not given."""
    return InputError(
        f"{option} tells how to use images, and no images were named.", where=f"option {option}", not_done=not_done, to_do=f"Add {data}."
    )
