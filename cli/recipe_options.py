"""The options of all installed recipes, as options of ``convert``.

They are the fields of the recipes' options dataclasses, with the help text these carry. Values go to the recipe as they were typed: it
alone checks them. One name may serve several recipes.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Annotated, Any

import typer

from chansurg.surgery.recipe import Recipe, flag, installed_recipes


def recipe_parameters() -> list[inspect.Parameter]:
    """One parameter for each option's name; ``None`` where it was not given."""
    owners: dict[str, list[Recipe]] = {}
    for recipe in installed_recipes().values():
        for field in dataclasses.fields(recipe.Options):
            owners.setdefault(field.name, []).append(recipe)
    return [_parameter(name, using) for name, using in owners.items()]


def default_text(field: dataclasses.Field[Any]) -> str | None:
    """A field's default as a reader sees it; ``None`` where its help text tells."""
    if field.default is None or field.default is dataclasses.MISSING:
        return None
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def value_text(field: dataclasses.Field[Any]) -> str | None:
    """What an option's value looks like: its choices, or the name it was given."""
    choices = field.metadata.get("choices")
    return "|".join(choices) if choices else field.metadata.get("metavar")


def _parameter(name: str, using: list[Recipe]) -> inspect.Parameter:
    fields = [next(field for field in dataclasses.fields(recipe.Options) if field.name == name) for recipe in using]
    field = fields[0]
    helps = dict.fromkeys(f.metadata.get("help", "") for f in fields)
    is_switch = typing.get_type_hints(using[0].Options)[name] is bool
    option = typer.Option(
        flag(name) if not is_switch else f"{flag(name)}/--no-{name.replace('_', '-')}",
        help=" / ".join(helps).replace("[", r"\["),
        metavar=None if is_switch else value_text(field) or "VALUE",
        show_default=default_text(field) or False,
        rich_help_panel=f"Options of {', '.join(recipe.name for recipe in using)}",
    )
    annotation = Annotated[bool | None, option] if is_switch else Annotated[str | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
