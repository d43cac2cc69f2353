"""The contract of a recipe, and the registry they enter themselves into.

A recipe is one object: its name and what a reader should know of it, one dataclass of options, and two methods: ``plan``, from a survey
to plain data, and ``layer``, from a layer's name to its class. Recipes are found through the entry-point group ``chansurg.recipes``, so
another package can add one. No torch is imported here; a recipe imports it inside its methods.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from chansurg.surgery.errors import InputError
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip

if TYPE_CHECKING:
    from chansurg.surgery.layer import RecipeLayer
    from chansurg.surgery.survey import Survey


def option(default: Any, help: str, *, choices: Sequence[str] | None = None, metavar: str | None = None) -> Any:
    """A field of a recipe's options: its default, its help text and, where they are few, its values.

    The command line and the documentation are made from these.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "metavar": metavar})


@dataclasses.dataclass(frozen=True)
class Recovery:
    """How a network that a recipe has converted is best fine-tuned, where its user says nothing else.

    Args:
        learning_rate: the highest one, as a share of what the optimizer was published with, which is for training from random weights.
        calibrated_rate: the same for a network that the conversion has calibrated; ``None`` where it is no other.
        distill_blocks: weight of the block outputs of a teacher, beside its logits.
        new_first: share of the run, from 0 to below 1, in which only the layers that started anew are trained.
    """

    learning_rate: float = 0.4
    calibrated_rate: float | None = None
    distill_blocks: float = 0.0
    new_first: float = 0.0


class Recipe(ABC):
    """One way of rewriting networks."""

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    """One line: what it does."""
    description: ClassVar[str]
    """A paragraph: how, and what a user gains and loses."""
    paper: ClassVar[str]
    not_for: ClassVar[str]
    """When not to use it."""
    Options: ClassVar[type]
    """A frozen dataclass whose fields come from :func:`option`; its ``__post_init__`` raises :class:`InputError` for bad values."""
    recovery: ClassVar[Recovery] = Recovery()
    """What suits fine-tuning afterwards."""

    @abstractmethod
    def plan(self, survey: Survey, options: Any, chosen: Chosen = EVERY) -> Plan:
        """What the recipe would do to the surveyed network; changes nothing.

        Args:
            survey: of the network.
            options: an instance of :attr:`Options`.
            chosen: the sites that may be converted. One that may not is among the skipped ones of the plan, with the reason that
                ``chosen`` gives; no two sites have one path.
        """

    @abstractmethod
    def sites(self, survey: Survey) -> tuple[list[Site], list[Skip]]:
        """Every place the recipe knows how to change, in any of its modes, and the places it leaves alone with the reason."""

    @abstractmethod
    def layer(self, name: str) -> type[RecipeLayer]:
        """The layer class of this name; only names that the recipe defines.

        Raises:
            KeyError: for any other name.
        """

    def options(self, values: Mapping[str, Any]) -> Any:
        """Options from keyword arguments or from the command line's strings.

        Raises:
            InputError: for a name that is no option of this recipe, or a value out of range.
        """
        known = _names(self)
        for name in values:
            if name not in known:
                others = " and ".join(repr(other.name) for other in installed_recipes().values() if name in _names(other))
                raise InputError(
                    f"{flag(name)} is no option of the recipe {self.name!r}{f'; it belongs to {others}' if others else ''}.",
                    where=f"recipe {self.name}, option {flag(name)}",
                    not_done="Nothing was converted.",
                    to_do=f"Its options are {', '.join(map(flag, sorted(known)))}; see `chansurg recipes {self.name}`.",
                )
        return self.Options(**values)


def _names(recipe: Recipe) -> set[str]:
    return {field.name for field in dataclasses.fields(recipe.Options)}


def flag(name: str) -> str:
    """How an option is typed on the command line."""
    return f"--{name.replace('_', '-')}"


def bad_value(recipe: str, name: str, value: object, to_do: str) -> InputError:
    """What an options dataclass raises for a value out of range.

    Args:
        recipe: the recipe's name.
        name: the option's field.
        value: what was given.
        to_do: which values there are, as a sentence.
    """
    huge = isinstance(value, int) and abs(value) > 10**18
    return InputError(
        f"{'A number as large as that' if huge else f'{value!r:.80}'} is not a value of {flag(name)}.",
        where=f"recipe {recipe}, option {flag(name)}",
        not_done="Nothing was converted.",
        to_do=to_do,
    )


@cache
def installed_recipes() -> Mapping[str, Recipe]:
    """All installed recipes by name."""
    found: dict[str, Recipe] = {}
    for entry in sorted(entry_points(group="chansurg.recipes"), key=lambda entry: entry.name):
        recipe = entry.load()
        found[recipe.name] = recipe
    return found


def find_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        InputError: where no installed recipe has it.
    """
    known = installed_recipes()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise InputError(
        f"There is no recipe {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
        where=f"recipe {name!r}",
        not_done="Nothing was converted.",
        to_do=f"Choose one of: {', '.join(known) or 'none is installed'}; `chansurg recipes` describes them.",
    )
