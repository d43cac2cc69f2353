"""PiX: dynamic pick-or-mix channel sampling in place of 1x1 squeezes, or in front of other convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chansurg.recipes.pix.options import PixOptions
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import Recipe

if TYPE_CHECKING:
    from chansurg.surgery.layer import RecipeLayer
    from chansurg.surgery.survey import Survey


class Pix(Recipe):
    """Pick-or-Mix (PiX)."""

    name = "pix"
    version = 1
    summary = "Dynamic pick-or-mix channel sampling in place of 1x1 channel squeezes."
    description = (
        "A 1x1 conv that squeezes channels spends a quarter of a ResNet-50's arithmetic without looking at a neighbour. PiX splits the "
        "channels into subsets and passes on one value of each, per pixel: the maximum or the mean, scaled by a sampling probability "
        "that a "
        "single small linear layer predicts from the globally pooled input. In downscale mode it goes in front of spatial and pointwise "
        "convs, "
        "and they shrink by zeta."
    )
    paper = "Pick-or-Mix: Dynamic Channel Sampling for ConvNets. Kumar, Kim, Park, Behera."
    not_for = (
        "Networks without squeeze layers (RegNetX, plain MobileNetV2 projections): squeeze mode finds nothing there. Networks that are "
        "neither calibrated nor trained afterwards: the replaced layers' weights are lost. Narrow networks that have to be fast "
        "(downscale mode in a MobileNetV2): its layers then take as long as what they save."
    )
    Options = PixOptions

    def plan(self, survey: Survey, options: PixOptions, chosen: Chosen = EVERY) -> Plan:
        """See :mod:`chansurg.recipes.pix.planning`."""
        from chansurg.recipes.pix.planning import plan

        return plan(self, survey, options, chosen)

    def sites(self, survey: Survey) -> tuple[list[Site], list[Skip]]:
        """Squeeze, feed-forward and downscale sites."""
        from chansurg.recipes.pix.planning import all_sites

        return all_sites(survey)

    def layer(self, name: str) -> type[RecipeLayer]:
        """The one layer, ``PickOrMix``."""
        from chansurg.recipes.pix.layer import PickOrMix

        return {"PickOrMix": PickOrMix}[name]


RECIPE = Pix()
