"""Stages grow by copies of their last block.

A copy starts with that block's numbers. With ``identity`` the last layer of its branch is multiplied by zero, so that at first it passes
its input through unchanged, and training works it in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from chansurg.recipes.mod.options import ModOptions, numbers_in
from chansurg.recipes.mod.sites import NumberedStage
from chansurg.surgery.editing.scaling import reason_against_scaling
from chansurg.surgery.edits import Address, Narrow, Repeat, Route, Scale
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.slicing.zeros import keeps_zero
from chansurg.surgery.survey import Block, Survey
from chansurg.surgery.survey.kinds import function_name, is_layout_change, is_neutral, module_of, path_of


@dataclass(frozen=True)
class Moved:
    """What is inside the module ``old``, as it is called inside its copy ``new``; with two empty paths everything is where it was."""

    old: str
    new: str

    def path(self, path: str) -> str:
        """A path."""
        inside = path == self.old or path.startswith(f"{self.old}.")
        return f"{self.new}{path.removeprefix(self.old)}" if inside else path

    def narrow(self, edit: Narrow) -> Narrow:
        """A slice."""
        return replace(edit, path=self.path(edit.path))

    def route(self, edit: Route) -> Route:
        """A way round."""
        return replace(edit, into=tuple(self._address(address) for address in edit.into), closes=self._address(edit.closes))

    def _address(self, address: Address) -> Address:
        return replace(address, owner=self.path(address.owner))


@dataclass(frozen=True)
class Growth:
    """What a stage grows by.

    Args:
        path: of the module that is its last block.
        copies: paths of the copies, in order.
        repeats: the edits that make them.
        zeros: the edits that let them pass their input through, with ``identity``.
    """

    path: str
    copies: tuple[str, ...]
    repeats: tuple[Repeat, ...]
    zeros: tuple[Scale, ...]


def growths(survey: Survey, stages: Sequence[NumberedStage], options: ModOptions) -> dict[int, Growth]:
    """How each stage grows, by its number; stages that do not are left out.

    Raises:
        InputError: for depths that are not one for each stage, or fewer blocks than a stage has.
        Refusal: where a stage cannot grow.
    """
    if options.depths is None:
        return {}
    depths = numbers_in(options.depths)
    now = tuple(numbered.stage.depth for numbered in stages)
    if len(depths) != len(now) or any(new < old for new, old in zip(depths, now, strict=True)):
        raise InputError(
            f"The depths {options.depths} do not fit a network whose stages have {', '.join(map(str, now)) or 'no'} blocks.",
            where="recipe mod, option --depths",
            not_done="Nothing was converted.",
            to_do=f"Name one number of blocks for each of its {len(now)} stages, none less than it has now.",
        )
    return {
        numbered.number: _growth(survey, numbered, new - numbered.stage.depth, options.grow == "identity")
        for numbered, new in zip(stages, depths, strict=True)
        if new > numbered.stage.depth
    }


def _growth(survey: Survey, numbered: NumberedStage, count: int, identity: bool) -> Growth:
    block = numbered.stage.blocks[-1]
    path = block.exit.meta["owners"][-1]
    if (reason := _reason_against(survey, numbered, block, path)) is not None:
        raise Refusal(
            f"Stage {numbered.number} cannot grow: {reason}.",
            where=block.path,
            not_done="Nothing was converted.",
            to_do="Leave its depth as it is.",
        )
    parent, _, name = path.rpartition(".")
    taken = set(dict(survey.original.get_submodule(parent).named_children()))
    names = _names(name, taken, count)
    sources = [path, *(f"{parent}.{new}".removeprefix(".") for new in names)]
    repeats = tuple(Repeat(source, new) for source, new in zip(sources[:-1], names, strict=True))
    last = _last_scalable(survey, block) if identity else None
    zeros = () if last is None else tuple(Scale(Moved(path, copy).path(last), "out", 0.0) for copy in sources[1:])
    if identity and last is None:
        raise Refusal(
            f"Stage {numbered.number} cannot grow by blocks that pass their input through: no layer ends the branch that could be zero.",
            where=block.path,
            not_done="Nothing was converted.",
            to_do="Choose --grow copied.",
        )
    return Growth(path, tuple(sources[1:]), repeats, zeros)


def _reason_against(survey: Survey, numbered: NumberedStage, block: Block, path: str) -> str | None:
    if block.kind == "plain":
        return "a plain block is no module of its own that could be repeated"
    parent = survey.original.get_submodule(path.rpartition(".")[0]) if path else None
    if parent is None or type(parent).forward is not nn.Sequential.forward:
        return f"its last block {path or 'the network'} is not one of the modules of a Sequential"
    calls = survey.calls(numbered.region, path)
    if len(calls) > 1:
        return f"its last block {path} is called {len(calls)} times"
    call = calls[0]
    if call.source is not block.entry or call.result is None:
        return f"its last block {path} is given something else than what its branch and shortcut begin with"
    if call.source.meta.get("shape") != call.result.meta.get("shape"):
        return f"its last block {path} changes the width or the resolution"
    return survey.shared(path)


def _last_scalable(survey: Survey, block: Block) -> str | None:
    """The last layer of the branch that can be multiplied by zero, where what follows it makes zero of zero."""
    for node in reversed(block.branch):
        if module_of(node) is not None and not is_neutral(node):
            module = survey.original.get_submodule(path_of(node))
            if reason_against_scaling(module, "out", 0.0, None) is None:
                return path_of(node)
        if not (is_neutral(node) or keeps_zero(node) or is_layout_change(node) or function_name(node) in ("mul", "imul")):
            return None
    return None


def _names(last: str, taken: set[str], count: int) -> list[str]:
    """Names for copies: the next numbers where the block is numbered and they are free, else its own name with a number behind."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", last)
    match = re.fullmatch(r"(.*?)(\d+)", plain)
    if match is not None:
        numbered = [f"{match[1]}{int(match[2]) + i}" for i in range(1, count + 1)]
        if not taken & set(numbered):
            return numbered
    behind = (f"{plain}_{number}" for number in range(2, 2 + count + len(taken)))
    return [name for name in behind if name not in taken][:count]
