"""Where constant positive factors on a node's channels can go, so that nothing else has to change.

*Ahead*: into the norm that made the channels, or the layer where there is no norm, if only positively homogeneous things lie between (a
ReLU, or nothing). Else *behind*: into the input slices of every layer that reads them. Pooling, dropout, changes of layout and
concatenations are walked through, and so are products with a gate: in squeeze-and-excitation the gate's own first layer and the layer
behind the product both take the factors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.editing.scaling import reason_against_scaling
from chansurg.surgery.edits import Scale
from chansurg.surgery.gating import Gate
from chansurg.surgery.survey.flow import flow, homogeneous_activation
from chansurg.surgery.survey.kinds import conv_of, is_neutral, is_norm, linear_of, module_of, path_of, shape_of, tensor_inputs
from chansurg.surgery.survey.regions import Region
from chansurg.surgery.survey.survey import Survey

_HOMOGENEOUS = (nn.Identity, nn.ReLU, nn.LeakyReLU)


@dataclass(frozen=True)
class Share:
    """A layer that takes factors.

    Args:
        path: of a norm, convolution or linear layer.
        side: ``out`` or ``in``, as of :class:`~chansurg.surgery.edits.Scale`.
        channels: the layer's channels that are multiplied.
        origins: for each of them, the channel of the node whose factor it takes.
        whole: whether these are all of the layer's channels, in their order.
    """

    path: str
    side: str
    channels: tuple[int, ...]
    origins: tuple[int, ...]
    whole: bool

    def scale(self, factors: float | Sequence[float]) -> Scale:
        """The edit that takes in ``factors``: one number, or one for each of the node's channels."""
        by_channel = factors if isinstance(factors, (int, float)) else tuple(factors[origin] for origin in self.origins)
        return Scale(self.path, self.side, by_channel, None if self.whole else self.channels)


class NoPlace(Exception):
    """Factors cannot be taken in anywhere; the message is the reason."""


def places_for_factors(survey: Survey, region: Region, node: fx.Node, axis: int, *, frozen: Collection[str] = ()) -> tuple[Share, ...]:
    """Who takes factors on the channels of what ``node`` puts out, so that the network stays the same function.

    Args:
        survey: of the network.
        region: where the node is.
        node: its shape is known. A gate stands for its features.
        axis: of its channels.
        frozen: paths of gates whose salience is going to be a constant, so that it does not matter what they compute it from.

    Raises:
        NoPlace: with the reason, where nobody can.
    """
    shape = shape_of(node)
    if shape is None:
        raise NoPlace("its shape is not known")
    ahead = _ahead(survey, region, node)
    if ahead is not None:
        every = tuple(range(shape[axis]))
        return (Share(path_of(ahead), "out", every, every, True),)
    shares: list[Share] = []
    for reader in flow(region, node, axis, homogeneous=True).readers:
        if reader.kind == "source" and path_of(reader.node) in frozen:
            continue
        if reader.kind != "layer":
            raise NoPlace(reader.why or f"the gate {path_of(reader.node)} computes its salience from it")
        reason = _against(survey, region, reader.node, "in")
        if reason is not None:
            raise NoPlace(f"{path_of(reader.node)} reads it: {reason}")
        channels = tuple(i for i, origin in enumerate(reader.origins) if origin is not None)
        origins = tuple(origin for origin in reader.origins if origin is not None)
        if channels:
            shares.append(Share(path_of(reader.node), "in", channels, origins, len(channels) == len(reader.origins)))
    return tuple(shares)


def _ahead(survey: Survey, region: Region, node: fx.Node) -> fx.Node | None:
    """The norm or layer ahead of ``node`` that can take factors, if nothing else reads what lies between."""
    while True:
        if is_norm(node) or conv_of(node) is not None or linear_of(node) is not None:
            return node if _against(survey, region, node, "out") is None else None
        inputs = tensor_inputs(node)
        if not inputs or not (is_neutral(node) or homogeneous_activation(node) or isinstance(module_of(node), Gate)):
            return None
        node = inputs[0]
        if len(node.users) > 1:
            return None


def _against(survey: Survey, region: Region, node: fx.Node, side: str) -> str | None:
    """Why the layer or norm at ``node`` cannot be multiplied."""
    module = module_of(node)
    if module is None:
        return "it is no module"
    # A library's norm may have an activation of its own.
    if any(not isinstance(child, _HOMOGENEOUS) for child in module.children()):
        return "it does more than its kind"
    return survey.uneditable(region, node, replaces=True) or reason_against_scaling(module, side, 1.0, None)
