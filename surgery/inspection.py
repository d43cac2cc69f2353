"""Everything that can be said of a network before anything is done to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from chansurg.surgery.counting import Counts, count
from chansurg.surgery.drift import Drift, drift_of
from chansurg.surgery.files.provenance import record_of, with_input_size
from chansurg.surgery.journal import Record
from chansurg.surgery.plan import Site, Skip
from chansurg.surgery.recipe import installed_recipes
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.blocks import Stage
from chansurg.surgery.survey.kinds import path_of


@dataclass(frozen=True)
class Inspection:
    """What a network is, and what each recipe could do with it.

    Args:
        record: its papers.
        counts: at the record's input size, batch of one.
        blocks: residual blocks: ``{"path", "kind", "shape"}``.
        stages: runs of blocks of one shape: ``{"shape", "blocks", "kinds", "first", "last"}``, the last two being paths; a first block
            without an addition is told by the path of its first layer.
        regions: paths of the parts that could be traced; ``""`` is the whole network.
        untraced: parts that could not, with the reason.
        sites: recipe -> where it applies.
        skipped: recipe -> candidates left alone, with the reason.
        drift: how far each conversion in its journal drifted, as the entry tells it: ``{"recipe", …}``, oldest first.
    """

    record: Record
    counts: Counts
    blocks: list[dict[str, Any]]
    stages: list[dict[str, Any]]
    regions: list[str]
    untraced: list[Skip]
    sites: dict[str, list[Site]]
    skipped: dict[str, list[Skip]]
    drift: list[tuple[str, Drift]]

    def as_json(self) -> dict[str, Any]:
        """The document that ``inspect --json`` prints."""
        return {
            "architecture": None if self.record.architecture is None else str(self.record.architecture),
            "input_size": list(self.record.preprocessing.input_size),
            **self.counts.as_json(),
            "uncounted": list(self.counts.uncounted),
            "sites": {name: [site.as_json() for site in found] for name, found in self.sites.items()},
            "skipped": {name: [skip.as_json() for skip in found] for name, found in self.skipped.items()},
            "blocks": self.blocks,
            "stages": self.stages,
            "regions": self.regions,
            "untraced": [skip.as_json() for skip in self.untraced],
            "drift": [{"recipe": recipe, **drift.as_json()} for recipe, drift in self.drift],
            "notes": list(self.record.notes),
        }


def inspect(model: nn.Module, *, input_size: tuple[int, ...] | None = None) -> Inspection:
    """Survey and count a network, and ask every recipe for its sites; nothing is changed and nothing computed on real tensors.

    Args:
        model: any module that takes one float tensor ``[B, C, H, W]``.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the record's where left out.

    Raises:
        InputError: where the input size is impossible for the network.
    """
    record = with_input_size(record_of(model), input_size)
    surveyed = survey(model, record.preprocessing.input_size)
    found = {name: recipe.sites(surveyed) for name, recipe in installed_recipes().items()}
    return Inspection(
        record=record,
        counts=count(model, record.preprocessing.input_size),
        blocks=[
            {"path": block.path, "kind": block.kind, "shape": list(block.shape)}
            for region in surveyed.regions
            for block in surveyed.blocks(region)
        ],
        stages=[_described(stage) for region in surveyed.regions for stage in surveyed.stages(region)],
        regions=[region.path for region in surveyed.regions],
        untraced=[Skip(path, reason) for path, reason in surveyed.untraced.items()],
        sites={name: sites for name, (sites, _) in found.items()},
        skipped={name: skips for name, (_, skips) in found.items()},
        drift=[(entry.recipe, drift) for entry in record.journal if (drift := drift_of(entry.results)) is not None],
    )


def _described(stage: Stage) -> dict[str, Any]:
    paths = [*(path_of(node) for node in stage.opening[:1]), *(block.path for block in stage.blocks)]
    kinds = list(dict.fromkeys(block.kind for block in stage.blocks))
    return {"shape": list(stage.shape), "blocks": stage.depth, "kinds": kinds, "first": paths[0], "last": paths[-1]}
