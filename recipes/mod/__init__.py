"""MoD: every second block works on the few channels that matter most to the image at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chansurg.recipes.mod.options import ModOptions
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import Recipe, Recovery

if TYPE_CHECKING:
    from chansurg.surgery.layer import RecipeLayer
    from chansurg.surgery.survey import Survey


class Mod(Recipe):
    """CNN Mixture-of-Depths (MoD)."""

    name = "mod"
    version = 2
    summary = "Every second block works on the few channels that matter most to the image at hand."
    description = (
        "In a stage of equal blocks every second one is made narrow: a small network scores all channels from the image's average, the few "
        "with the highest scores go through the block, and the result, scaled by the scores, is added to the first channels of the block's "
        "input. All other channels pass by. A ResNet-50 keeps 63 % of its arithmetic; with --depths what is saved pays for more blocks."
    )
    paper = "CNN Mixture-of-Depths. Cakaj, Mehnert, Yang. ACCV 2024."
    not_for = (
        "Networks whose stages have one block each, transformers, networks of concatenations (DenseNet, GoogLeNet, ShuffleNet). Networks "
        "that are neither calibrated nor trained afterwards: the narrowed blocks lose most of their weights."
    )
    Options = ModOptions
    recovery = Recovery(calibrated_rate=0.16)  # what was fitted is undone by faster steps

    def plan(self, survey: Survey, options: ModOptions, chosen: Chosen = EVERY) -> Plan:
        """See :mod:`chansurg.recipes.mod.planning`."""
        from chansurg.recipes.mod.planning import plan

        return plan(self, survey, options, chosen)

    def sites(self, survey: Survey) -> tuple[list[Site], list[Skip]]:
        """Every block but the first of its stage that can be made narrow."""
        from chansurg.recipes.mod.planning import all_sites

        return all_sites(survey)

    def layer(self, name: str) -> type[RecipeLayer]:
        """The two layers, ``ChannelSelector`` and ``Fusion``."""
        from chansurg.recipes.mod.layer import ChannelSelector, Fusion

        layers: dict[str, type[RecipeLayer]] = {"ChannelSelector": ChannelSelector, "Fusion": Fusion}
        return layers[name]


RECIPE = Mod()
