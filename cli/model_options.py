"""The options of every command that reads a model, and the reading itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chansurg.cli.reporting import Report
from chansurg.surgery.errors import InputError

if TYPE_CHECKING:
    from torch import nn

PANEL = "Model"
MODEL_HELP = "A model file, or an architecture's name (then with fresh weights)."


def given(text: str) -> str:
    """An argument that names something.

    Raises:
        BadParameter: where it is empty, as an unset variable of a shell script leaves it; to Path that would be the current folder.
    """
    if not text:
        raise typer.BadParameter("It is empty.")
    return text


def given_path(text: str) -> Path:
    """The same as a path."""
    return Path(given(text))


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False, parser=given)]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="NAME",
        help="The architecture, where the file does not tell: resnet50, timm/resnet50, cifar/resnet20, or package.module:factory.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(
        "--input-size",
        metavar="SIZE",
        help="H, H,W or C,H,W in pixels, where the architecture's own size does not serve.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", help="With an architecture's name: the library's own weights (a download).", rich_help_panel=PANEL),
]
TrustPickle = Annotated[
    bool,
    typer.Option("--trust-pickle", help="Unpickle objects from the file. This runs code that the file names.", rich_help_panel=PANEL),
]


def parse_input_size(text: str | None) -> tuple[int, ...] | None:
    """``H``, ``H,W`` or ``C,H,W`` as numbers.

    Raises:
        InputError: for anything else.
    """
    if text is None:
        return None
    try:
        size = tuple(int(part) for part in text.split(","))
    except ValueError:
        size = ()
    if not 1 <= len(size) <= 3 or min(size) < 1:
        raise InputError(
            f"{text!r} is no input size.",
            where="option --input-size",
            not_done="No model was read.",
            to_do="Pass one to three whole numbers of at least 1: 224, or 224,160, or 3,224,224.",
        )
    return size


def read_model(
    report: Report, model: str, arch: str | None, input_size: str | None, *, pretrained: bool = False, trust_pickle: bool = False
) -> nn.Module:
    """The network, in eval mode; what a reader should know of how it was read goes to the report.

    Raises:
        InputError: where it cannot be read.
    """
    size = parse_input_size(input_size)

    import chansurg

    network = chansurg.load(model, arch=arch, input_size=size, pretrained=pretrained, trust_pickle=trust_pickle)
    for note in chansurg.record_of(network).notes:
        report.note(f"note: {note}")
    return network


def existing_input(model: str) -> Path | None:
    """The file that MODEL names, if it names one."""
    path = Path(model)
    return path if path.exists() else None


def stem(model: str) -> str:
    """What an output is called after: the file's name without its suffix, or the architecture's."""
    if existing_input(model) is not None or not any(mark in model for mark in "/:"):
        return Path(model).stem if existing_input(model) is not None else model
    return model.replace(":", "/").rpartition("/")[2]
