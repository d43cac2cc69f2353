"""The settings of a training run, as options of ``finetune``: the fields of its settings, with the help text they carry."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated

import typer

from chansurg.cli.recipe_options import default_text, value_text
from chansurg.surgery.recipe import flag
from chansurg.surgery.training.settings import Settings, kind_of

_PANELS = (
    ("Run", "epochs"),
    ("Optimizer", "optimizer"),
    ("Learning rate", "schedule"),
    ("Loss", "label_smoothing"),
    ("Teacher", "distill_logits"),
    ("Budget", "target_macs"),
    ("Computation", "augment"),
    ("Keeping", "keep"),
)
"""Each panel of the help with its first setting."""


def settings_parameters() -> list[inspect.Parameter]:
    """One parameter for each setting; ``None`` where it was not given."""
    titles = {first: title for title, first in _PANELS}
    panel, parameters = "", []
    for field in dataclasses.fields(Settings):
        panel = titles.get(field.name, panel)
        parameters.append(_parameter(field, panel))
    return parameters


def _parameter(field: dataclasses.Field[object], panel: str) -> inspect.Parameter:
    kind = kind_of(field)
    named = flag(field.name)
    option = typer.Option(
        f"{named}/--no-{named[2:]}" if kind is bool and field.default else named,
        help=field.metadata["help"],
        metavar=None if kind is bool else value_text(field),
        show_default=default_text(field) or False,
        rich_help_panel=panel,
    )
    annotation: object = Annotated[kind | None, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
