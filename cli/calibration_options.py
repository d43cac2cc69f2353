"""The options of ``convert`` about images to calibrate with, and about where to cut."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chansurg.cli.model_options import given
from chansurg.surgery.errors import InputError
from chansurg.surgery.recipe import flag
from chansurg.surgery.selecting.timed import RUNTIMES, Where

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
        help="Steps of distillation behind the fits, block by block, then of all blocks together; 0 for none.",
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
OnlyIfFaster = Annotated[
    bool,
    typer.Option(
        "--only-if-faster",
        help="Time each site on this machine, before and after, and convert only those that gain.",
        rich_help_panel=WHERE,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help=f"What --only-if-faster times them in: {', '.join(RUNTIMES)}.",
        rich_help_panel=WHERE,
        show_default=Where.runtime,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images that --only-if-faster times them on.",
        rich_help_panel=WHERE,
        show_default=str(Where.batch_size),
    ),
]


def timing_options(only_if_faster: bool, runtime: str | None, batch_size: int | None) -> dict[str, Any]:
    """What ``chansurg.plan`` is told about timing.

    Raises:
        InputError: for how to time without ``--only-if-faster``, or what nothing can be timed in.
    """
    told: dict[str, Any] = {name: value for name, value in (("runtime", runtime), ("batch_size", batch_size)) if value is not None}
    if told and not only_if_faster:
        raise InputError(
            f"{flag(next(iter(told)))} tells how to time sites, and nothing is timed.",
            where=f"option {flag(next(iter(told)))}",
            not_done="Nothing was converted.",
            to_do="Add --only-if-faster.",
        )
    return {"only_if_faster": True, **vars(Where(**told))} if only_if_faster else {}


def without_images(option: str, data: str, not_done: str) -> InputError:
    """What to say where an option tells how to use images, and ``data``, which names them, was not given."""
    return InputError(
        f"{option} tells how to use images, and no images were named.", where=f"option {option}", not_done=not_done, to_do=f"Add {data}."
    )
