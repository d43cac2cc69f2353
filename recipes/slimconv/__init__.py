"""SlimConv: slim convolutions, which fold the channels of their input under two orders of one attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chansurg.recipes.slimconv.options import SlimConvOptions
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import Recipe

if TYPE_CHECKING:
    from chansurg.surgery.layer import RecipeLayer
    from chansurg.surgery.survey import Survey


class Slimconv(Recipe):
    """Slim convolution (SlimConv)."""

    name = "slimconv"
    version = 1
    summary = "Spatial convolutions that fold their input's channels under two orders of one attention."
    description = (
        "A spatial convolution gives way to two smaller ones. A small network looks at the input and weights its channels; the weighted "
        "channels are folded, m to one, once under these weights and once under the weights in reverse order, so that the two sums differ. "
        "Each is convolved, and the results are joined: 3/(2m) of the channels that the convolution put out. The norm behind it, "
        "squeeze-and-excitation and the next convolution shrink with it."
    )
    paper = "SlimConv: Reducing Channel Redundancy in Convolutional Neural Networks by Features Recombining. Qiu, Chen, Liu, Zhang, Zeng."
    not_for = (
        "Convolutions whose output is added to a shortcut or concatenated (the second convolution of a basic block, DenseNet): their width "
        "is not theirs alone. Networks whose spatial convolutions are depthwise, with k = 4/3: the attention and the 1x1 convolution weigh "
        "more than is saved, so take 8/3 as the paper does. Networks that are neither calibrated nor trained afterwards: filters are kept, "
        "but they see folded channels."
    )
    Options = SlimConvOptions

    def plan(self, survey: Survey, options: SlimConvOptions, chosen: Chosen = EVERY) -> Plan:
        """See :mod:`chansurg.recipes.slimconv.planning`."""
        from chansurg.recipes.slimconv.planning import plan

        return plan(self, survey, options, chosen)

    def sites(self, survey: Survey) -> tuple[list[Site], list[Skip]]:
        """Spatial convolutions whose output can shrink."""
        from chansurg.recipes.slimconv.planning import all_sites

        return all_sites(survey)

    def layer(self, name: str) -> type[RecipeLayer]:
        """The one layer, ``SlimConv``."""
        from chansurg.recipes.slimconv.layer import SlimConv

        return {"SlimConv": SlimConv}[name]


RECIPE = Slimconv()
