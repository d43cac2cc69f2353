"""PCS: progressive channel shrinking, which lets a network learn during training which channels it can do without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chansurg.recipes.pcs.options import PcsOptions
from chansurg.surgery.plan import EVERY, Chosen, Plan, Site, Skip
from chansurg.surgery.recipe import Recipe, Recovery

if TYPE_CHECKING:
    from chansurg.surgery.layer import RecipeLayer
    from chansurg.surgery.survey import Survey


class Pcs(Recipe):
    """Progressive Channel Shrinking (PCS)."""

    name = "pcs"
    version = 1
    summary = "Channels that training shrinks to exactly zero, for slicing to take out."
    description = (
        "Behind each layer a small network looks at the layer's input and scales every channel of its output. At first all scales are one "
        "half, made up for by a factor of two in the weights, so the converted network is the same function, bit for bit. Fine-tuning then "
        "lowers the scales of the channels that matter least, until they are exactly zero and stay so; slicing removes those channels "
        "without changing the function."
    )
    paper = "Progressive Channel-Shrinking Network. Pan, Yang, Foo, Ke, Rahmani, Fan, Liu."
    not_for = (
        "Networks that will not be trained: a conversion by itself removes nothing and adds a little cost. Layers whose channels a norm "
        "mixes "
        "or revives (LayerNorm over the channels, DenseNet's concatenations) are left as they are."
    )
    Options = PcsOptions
    recovery = Recovery(learning_rate=1.0)  # what it masks changes the network much more than a conversion does

    def plan(self, survey: Survey, options: PcsOptions, chosen: Chosen = EVERY) -> Plan:
        """See :mod:`chansurg.recipes.pcs.planning`."""
        from chansurg.recipes.pcs.planning import plan

        return plan(self, survey, options, chosen)

    def sites(self, survey: Survey) -> tuple[list[Site], list[Skip]]:
        """Convolutions and hidden layers of feed-forward networks whose channels can go."""
        from chansurg.recipes.pcs.planning import all_sites

        return all_sites(survey)

    def layer(self, name: str) -> type[RecipeLayer]:
        """The one layer, ``SalienceGate``."""
        from chansurg.recipes.pcs.layer import SalienceGate

        return {"SalienceGate": SalienceGate}[name]


RECIPE = Pcs()
