"""From blocks and options to edits: blocks are repeated, made narrow all the way through, and routed around.

Which blocks can be, and what stands in the way of the others, is told by :mod:`chansurg.recipes.mod.sites`; what a narrow block keeps by
:mod:`chansurg.recipes.mod.narrowing`; how stages grow by :mod:`chansurg.recipes.mod.growing`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from chansurg.recipes.mod.growing import Growth, Moved, growths
from chansurg.recipes.mod.narrowing import Narrowed, narrowed_block
from chansurg.recipes.mod.options import ModOptions, numbers_in
from chansurg.recipes.mod.sites import BlockSite, NoSite, NumberedStage, block_site, first_width, is_routed, numbered_stages
from chansurg.surgery.edits import Edit, LayerSpec, Narrow, Repeat, Route, Scale
from chansurg.surgery.errors import InputError
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.survey import Block, Survey
from chansurg.surgery.survey.kinds import path_of

if TYPE_CHECKING:
    from chansurg.recipes.mod import Mod


def all_sites(survey: Survey) -> tuple[list[Site], list[Skip]]:
    """Every block that could work on a selection of its channels, whatever the options, and the others with the reason why not."""
    stages = numbered_stages(survey)
    draft = _Draft(survey, ModOptions(blocks="all"), stages, {}, EVERY)
    draft.convert(every=True)
    return draft.sites, draft.skipped


def plan(recipe: Mod, survey: Survey, options: ModOptions, chosen: Chosen) -> Plan:
    """What MoD would do to the surveyed network with these options, at the chosen blocks.

    Raises:
        InputError: for stages, blocks or depths that the network does not have.
        Refusal: where a stage cannot grow.
    """
    stages = numbered_stages(survey)
    _check_stages(options, stages)
    grown = growths(survey, stages, options)
    _check_blocks(options, stages, grown)
    draft = _Draft(survey, options, stages, grown, chosen)
    draft.convert(every=False)
    if not draft.sites:
        draft = _Draft(survey, options, stages, grown, chosen)
        draft.convert(every=True)
    return Plan(
        recipe=recipe.name,
        version=recipe.version,
        options=dataclasses.asdict(options),
        sites=tuple(draft.sites),
        edits=tuple(draft.edits()) if draft.sites else (),
        skipped=tuple(draft.skipped),
        signatures=draft.signatures,
    )


def _check_stages(options: ModOptions, stages: Sequence[NumberedStage]) -> None:
    if options.stages != "all" and max(numbers_in(options.stages)) > len(stages) > 0:
        raise InputError(
            f"The network has no stage {max(numbers_in(options.stages))}: it has {len(stages)}.",
            where="recipe mod, option --stages",
            not_done="Nothing was converted.",
            to_do="Choose among its stages, counted from 1; `chansurg inspect` lists them.",
        )


def _check_blocks(options: ModOptions, stages: Sequence[NumberedStage], grown: Mapping[int, Growth]) -> None:
    if options.blocks in ("alternate", "all") or not stages:
        return
    deepest = max(one.stage.depth + (len(grown[one.number].copies) if one.number in grown else 0) for one in stages)
    if (largest := max(numbers_in(options.blocks))) > deepest:
        raise InputError(
            f"No stage has a block {largest}: the deepest has {deepest}.",
            where="recipe mod, option --blocks",
            not_done="Nothing was converted.",
            to_do="Choose among the blocks of its stages, counted from 1; `chansurg inspect` lists them.",
        )


class _Draft:
    """Edits as they gather; a block's edits are taken whole or not at all."""

    def __init__(
        self, survey: Survey, options: ModOptions, stages: Sequence[NumberedStage], grown: Mapping[int, Growth], chosen: Chosen
    ) -> None:
        self.sites: list[Site] = []
        self.skipped: list[Skip] = []
        self.signatures: dict[str, Mapping[str, Any]] = {}
        self._survey, self._options, self._stages, self._grown, self._chosen = survey, options, stages, grown, chosen
        self._narrowed: list[Narrow] = []
        self._routed: list[Route] = []
        self._names: set[tuple[str, str]] = set()

    def edits(self) -> list[Edit]:
        """Copies first, then slices, then the layers around them."""
        repeats: list[Repeat] = [edit for growth in self._grown.values() for edit in growth.repeats]
        zeros: list[Scale] = [edit for growth in self._grown.values() for edit in growth.zeros]
        return [*repeats, *self._narrowed, *zeros, *self._routed]

    def convert(self, *, every: bool) -> None:
        """Convert the blocks that the options name.

        Args:
            every: give a reason for every block that stays as it is, also where the options alone are the reason.
        """
        if not self._stages:
            self.skipped.append(Skip("(the network)", "it has no residual block, and no convolutions of one kind that follow one another"))
        for numbered in self._stages:
            self._convert_stage(numbered, every)

    def _convert_stage(self, numbered: NumberedStage, every: bool) -> None:
        stage, growth = numbered.stage, self._grown.get(numbered.number)
        copies = () if growth is None else growth.copies
        if stage.depth + len(copies) == 1:
            self.skipped.append(Skip(stage.blocks[0].path, "it is the only block of its stage"))
            return
        for number, block in stage.numbered:
            self._convert_block(numbered, number, block, None, every)
        for number, copy in enumerate(copies, stage.depth + 1):
            self._convert_block(numbered, number, stage.blocks[-1], copy, every)

    def _convert_block(self, numbered: NumberedStage, number: int, block: Block, copy: str | None, every: bool) -> None:
        """Convert one block, or with ``copy`` what stands at that path, which is a copy of the block."""
        named = self._options.takes_stage(numbered.number) and self._options.takes_block(number)
        moved = Moved("", "") if copy is None else Moved(self._grown[numbered.number].path, copy)
        path = moved.path(block.path)
        if not every and (not named or number == 1):
            return
        try:
            if number == 1:
                raise NoSite("it is the first block of its stage")
            site = block_site(self._survey, numbered.region, block)
            if not named:
                raise NoSite(f"the options leave block {number} of stage {numbered.number} out")
            if (against := self._chosen.reason_against(path)) is not None:
                raise NoSite(against)
            k = max(1, site.in_channels // self._c)
            narrowed = narrowed_block(self._survey, site, k, self._options.fuse)
            routed = self._route(site, k, moved.path(site.closes.owner), narrowed)
        except NoSite as reason:
            # Several blocks of one module's code would go by the same path.
            self.skipped.append(Skip(moved.path(path_of(block.exit)) if is_routed(block) else path, str(reason)))
            return
        self._narrowed += [moved.narrow(edit) for edit in narrowed.edits]
        self._routed.append(moved.route(routed))
        self.signatures[moved.path(site.closes.owner)] = self._survey.signature(numbered.region, site.closes.owner)
        detail = {"stage": numbered.number, "block": number, "in_channels": site.in_channels, "selected": k}
        self.sites.append(Site(path, block.kind, detail if copy is None else {**detail, "copy_of": block.path}))

    @cached_property
    def _c(self) -> int:
        return self._options.c if isinstance(self._options.c, int) else first_width(self._stages)

    def _route(self, site: BlockSite, k: int, owner: str, narrowed: Narrowed) -> Route:
        """The way round a block; ``owner`` is the module that gets the new layers, which may be a copy of the site's."""
        options = self._options
        selector = LayerSpec(
            "mod.ChannelSelector",
            {
                "in_channels": site.in_channels,
                "out_channels": k,
                "select": options.select,
                "positions": options.fuse == "original",
                "rectified": site.rectified,
                "channel_dim": site.channel_dim,
                **self._ranking(site, narrowed),
            },
        )
        fusion = LayerSpec("mod.Fusion", {"fuse": options.fuse, "inplace": site.inplace, "channel_dim": site.channel_dim})
        stem = site.into[0].operation.removeprefix("self.").replace(".", "_").strip("_")
        selector_name, fusion_name = (self._free_name(owner, site, f"{stem}_{role}") for role in ("selector", "fusion"))
        return Route(site.into, site.closes, site.passing, selector_name, selector, fusion_name, fusion)

    def _ranking(self, site: BlockSite, narrowed: Narrowed) -> dict[str, Any]:
        """What a selector starts from where images were measured: the channels that the block was made for, and its input's averages."""
        if narrowed.selected is None or self._options.select != "topk" or self._survey.statistics is None:
            return {}
        for node in site.block.entry.users:
            measured = self._survey.statistics.layers.get(path_of(node)) if node in site.block.branch else None
            if measured is not None and len(measured.mean) == site.in_channels and measured.mean.abs().sum() > 0:
                averages = [float(f"{average:.4g}") for average in measured.mean.tolist()]
                return {"ranking": list(narrowed.selected), "averages": averages}
        return {}

    def _free_name(self, owner: str, site: BlockSite, name: str) -> str:
        """The name, numbered where it is taken."""
        module = self._survey.original.get_submodule(site.closes.owner)
        names = (name if number == 1 else f"{name}{number}" for number in itertools.count(1))
        free = next(found for found in names if not hasattr(module, found) and (owner, found) not in self._names)
        self._names.add((owner, free))
        return free
