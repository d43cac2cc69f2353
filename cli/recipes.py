"""``chansurg recipes``: what each recipe does, its options, its paper, and when not to use it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from chansurg.cli.recipe_options import default_text, value_text
from chansurg.cli.reporting import Report, grid, labelled
from chansurg.surgery.recipe import Recipe, find_recipe, flag, installed_recipes

EXAMPLES = ("chansurg recipes", "chansurg recipes pix")


def recipes(
    report: Report,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One recipe, in full.", show_default=False)] = None,
) -> None:
    """What each recipe does, its options, its paper, and when not to use it."""
    if name is not None:
        recipe = find_recipe(name)
        report.result(_document(recipe), line=f"{recipe.name}: {recipe.summary}", show=lambda: _show_one(report, recipe))
        return
    known = installed_recipes()
    report.result({"recipes": [_document(recipe) for recipe in known.values()]}, line="\n".join(known), show=lambda: _show_all(report))


def _document(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "version": recipe.version,
        "summary": recipe.summary,
        "description": recipe.description,
        "options": [
            {
                "name": field.name,
                "default": field.default,
                "choices": list(field.metadata.get("choices") or ()) or None,
                "help": field.metadata.get("help", ""),
            }
            for field in dataclasses.fields(recipe.Options)
        ],
        "paper": recipe.paper,
        "not_for": recipe.not_for,
    }


def _show_all(report: Report) -> None:
    table = grid("recipe", "what it does")
    for recipe in installed_recipes().values():
        table.add_row(Text(recipe.name, style="bold"), Text(recipe.summary))
    report.out.print(table)
    report.out.print("\n`chansurg recipes NAME` tells more of one.")


def _show_one(report: Report, recipe: Recipe) -> None:
    out = report.out
    out.print(Text.assemble((recipe.name, "bold"), f"  {recipe.summary}"))
    out.print(Padding(Text(recipe.description), (1, 0)))
    for field in dataclasses.fields(recipe.Options):
        values, default = value_text(field), default_text(field)
        told = (f"  {values.replace('|', ', ')}" if values else "", (f"  (default {default})" if default else "", "dim"))
        out.print(Text.assemble((flag(field.name), "bold"), *told))
        out.print(Padding.indent(Text(field.metadata.get("help", "")), 4))
    out.print()
    out.print(labelled(Text("when not ", style="dim"), recipe.not_for))
    out.print(labelled(Text("paper    ", style="dim"), recipe.paper))
