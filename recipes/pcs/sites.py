"""Where a salience gate can go, and where not, with the reason.

A gate goes behind a layer's norm and activation. What the gate lets go of is zero from there on, and it has to stay zero until every reader
loses it for good: a layer that can do without that input, or an addition to a tensor that stays. Then slicing is exact. A depthwise or
other grouped convolution keeps or loses its channels together with the convolution that feeds it, so the two share one gate, behind the
second: ahead of it a zero would come out of its norm as a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from chansurg.surgery.editing.narrowing import reason_against
from chansurg.surgery.gating import Gate
from chansurg.surgery.plan import Site, Skip
from chansurg.surgery.slicing.nodes import works_in_place
from chansurg.surgery.survey import Region, Survey
from chansurg.surgery.survey.chains import Tail, tail_of
from chansurg.surgery.survey.factors import NoPlace, Share, places_for_factors
from chansurg.surgery.survey.flow import Reader, flow
from chansurg.surgery.survey.kinds import (
    conv_of,
    function_name,
    is_activation,
    is_batched,
    is_depthwise,
    is_neutral,
    is_norm,
    is_pointwise,
    is_pooled,
    is_pooling,
    linear_of,
    module_of,
    path_of,
    shape_of,
    tensor_inputs,
)
from chansurg.surgery.survey.meeting import Meeting, meeting


class NoSite(Exception):
    """A layer that takes no gate; the message is the reason."""


@dataclass(frozen=True)
class GateSite:
    """A place for a gate.

    Args:
        kind: ``convolution``, ``branch`` (ahead of a residual addition), ``grouped``, ``depthwise`` or ``feed-forward``.
        first: the layer whose input the salience is computed from: the gated layer, or the convolution that feeds a grouped one.
        layer: the gated layer.
        tail: its norm and activation.
        entries: removable units.
        unit: channels a unit.
        channel_dim: where its channels are: 1, or -1 for a linear layer.
        meets: the calls that the gate is attached to.
        shares: who takes the factor that makes up for the first salience.
    """

    region: Region
    kind: str
    first: fx.Node
    layer: fx.Node
    tail: Tail
    entries: int
    unit: int
    channel_dim: int
    meets: Meeting
    shares: tuple[Share, ...]

    @property
    def in_channels(self) -> int:
        """Channels that the salience is computed from."""
        return _widths(self.first)[0]

    def describe(self) -> Site:
        """The site as plain data."""
        detail: dict[str, object] = {"in_channels": self.in_channels, "out_channels": self.entries * self.unit, "entries": self.entries}
        if self.first is not self.layer:
            detail["with"] = path_of(self.first)
        return Site(path_of(self.layer), self.kind, detail)


def gate_sites(survey: Survey) -> tuple[list[GateSite], list[Skip]]:
    """Every place for a gate, and every other convolution and linear layer with the reason why it has none."""
    sites: list[GateSite] = []
    skipped: list[Skip] = []
    for region in survey.regions:
        inside_gates = _pooled_and_back(region)
        followed = _followers(region)
        for node in region.nodes:
            if not _is_layer(node):
                continue
            try:
                sites.append(_site(survey, region, node, inside_gates, followed))
            except NoSite as reason:
                skipped.append(Skip(path_of(node), str(reason)))
        taken = {site.first: site for site in sites if site.first is not site.layer}
        skipped = [skip for skip in skipped if skip.path not in {path_of(first) for first in taken}]
    return sites, skipped


def _is_layer(node: fx.Node) -> bool:
    return conv_of(node) is not None or linear_of(node) is not None or isinstance(module_of(node), nn.modules.conv._ConvTransposeNd)


def _site(survey: Survey, region: Region, node: fx.Node, inside_gates: set[fx.Node], followed: dict[fx.Node, fx.Node]) -> GateSite:
    conv = conv_of(node)
    if conv is None and linear_of(node) is None:
        raise NoSite("it is a transposed convolution")
    if not tensor_inputs(node):
        raise NoSite("what goes into it does not depend on the image")
    if node in inside_gates:
        raise NoSite("it works on pooled vectors that scale a map")
    first = node
    if conv is not None and conv.groups > 1:
        found = next((feeder for feeder, grouped in followed.items() if grouped is node), None)
        if found is None:
            raise NoSite(f"its {conv.groups} groups can lose channels only with one convolution that feeds it alone")
        first = found
    elif node in followed:
        raise NoSite(f"its channels belong to {path_of(followed[node])} behind it, which takes no gate")
    tail = tail_of(node)
    if conv is None and tail.activation is None:
        raise NoSite("it is no hidden layer: no activation follows it")
    entries = conv.groups if conv is not None and conv.groups > 1 else _widths(node)[1]
    unit = _widths(node)[1] // entries
    if entries < 2:
        raise NoSite("it has a single channel")
    _check_layers(survey, region, first, node, tail)
    readers = _readers(survey, region, node, tail)
    if conv is None:
        _check_hidden(node, readers)
    meets = meeting(region, first, tail.last)
    if meets is None:
        raise NoSite("no module's own forward sees both what goes into it and what comes out of its norm and activation")
    for address in (meets.reads, meets.after):
        if (reason := survey.unrewritable(region, address)) is not None:
            raise NoSite(reason)
    _check_source(region, first, tail.last)
    try:
        shares = places_for_factors(survey, region, tail.last, 1 if conv is not None else -1)
    except NoPlace as place:
        raise NoSite(f"nothing can make up for the first salience: {place}") from None
    kind = _kind(node, readers)
    return GateSite(region, kind, first, node, tail, entries, unit, 1 if conv is not None else -1, meets, shares)


def _kind(node: fx.Node, readers: list[Reader]) -> str:
    conv = conv_of(node)
    if conv is None:
        return "feed-forward"
    if conv.groups > 1:
        return "depthwise" if is_depthwise(conv) else "grouped"
    return "branch" if any(reader.kind == "addition" for reader in readers) else "convolution"


def _widths(node: fx.Node) -> tuple[int, int]:
    conv, linear = conv_of(node), linear_of(node)
    if conv is not None:
        return conv.in_channels, conv.out_channels
    assert linear is not None
    return linear.in_features, linear.out_features


def _check_layers(survey: Survey, region: Region, first: fx.Node, node: fx.Node, tail: Tail) -> None:
    """All that has to become narrower must be able to."""
    if any(isinstance(module_of(user), Gate) for user in tail.last.users):
        raise NoSite("a gate is behind it already")
    source = tensor_inputs(first)[0]
    if shape_of(tail.last) is None or shape_of(source) is None:
        raise NoSite("its shapes are not known")
    if is_batched(source) is not True:
        known = is_batched(source) is False
        raise NoSite("its first dimension is not the batch" if known else "whether its first dimension is the batch is not known")
    for part in _chain(first, tail.last):
        if is_norm(part) and not _keeps_channels_apart(part):
            raise NoSite(f"the norm {path_of(part)} mixes its channels")
        module = module_of(part)
        if any(True for _ in (module.parameters() if module is not None else ())):
            reason = survey.uneditable(region, part, replaces=True) or reason_against(_original(survey, part), None, None)
            if reason is not None:
                raise NoSite(reason if part is node else f"{path_of(part)} cannot become narrower: {reason}")


def _chain(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes from ``first`` to ``last``, each fed by the one ahead of it."""
    chain = [last]
    while chain[-1] is not first:
        chain.append(tensor_inputs(chain[-1])[0])
    return chain[::-1]


def _original(survey: Survey, node: fx.Node) -> nn.Module:
    return survey.original.get_submodule(path_of(node))


def _keeps_channels_apart(node: fx.Node) -> bool:
    module = module_of(node)
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    return isinstance(module, kinds) or type(module).__name__ == "FrozenBatchNorm2d"


def _readers(survey: Survey, region: Region, node: fx.Node, tail: Tail) -> list[Reader]:
    """Who reads the gated channels; each has to be able to lose them."""
    found = flow(region, tail.last, 1 if conv_of(node) is not None else -1, homogeneous=False)
    flowing = {tail.last, *found.passed}
    for part in found.passed:
        if (reason := _against_passing(part, flowing)) is not None:
            raise NoSite(f"a removed channel would not vanish: {reason}")
    for reader in found.readers:
        if reader.kind == "source" or reader.kind == "addition":
            continue
        if reader.kind != "layer":
            raise NoSite(f"a removed channel would not vanish: {reader.why}")
        conv = conv_of(reader.node)
        if conv is not None and conv.groups > 1:
            raise NoSite(f"{path_of(reader.node)}, whose {conv.groups} groups cannot lose single channels, reads it")
        reason = survey.uneditable(region, reader.node, replaces=True) or reason_against(_original(survey, reader.node), None, None)
        if reason is not None:
            raise NoSite(f"{path_of(reader.node)}, which reads it, cannot become narrower: {reason}")
    return list(found.readers)


def _against_passing(node: fx.Node, flowing: set[fx.Node]) -> str | None:
    """Why what a channel goes through cannot do without it, or ``None``: it has numbers for each channel that nothing slices."""
    module = module_of(node)
    if module is not None and not isinstance(module, Gate) and any(p.numel() > 1 for p in module.parameters()):
        return f"{path_of(node)} has a parameter for each channel"
    if function_name(node) not in ("mul", "imul", "multiply", "truediv", "itruediv", "div", "divide"):
        return None
    for other in node.all_input_nodes:
        if other in flowing or _is_one_for_all_channels(other, node):
            continue
        if other.op == "get_attr":
            return f"it is multiplied by a parameter at {path_of(node)}"
        while is_activation(other) or is_neutral(other):
            other = tensor_inputs(other)[0]
        if conv_of(other) is None and linear_of(other) is None:
            return f"it is multiplied by something whose channels cannot go at {path_of(node)}"
    return None


def _is_one_for_all_channels(factor: fx.Node, product: fx.Node) -> bool:
    """Whether ``factor`` has one number for an image, or is no tensor."""
    shape, whole = shape_of(factor), shape_of(product)
    if shape is None or whole is None:
        return shape is None
    return max(((1,) * (len(whole) - len(shape)) + shape)[1:], default=1) == 1


def _check_hidden(node: fx.Node, readers: list[Reader]) -> None:
    """A hidden linear layer feeds pointwise layers alone; on flat vectors the generator must not cost more than the layer."""
    for reader in readers:
        conv = conv_of(reader.node)
        if reader.kind != "source" and not (linear_of(reader.node) is not None or (conv is not None and is_pointwise(conv))):
            raise NoSite("it is no hidden layer: what reads it is no pointwise layer")
    shape, (inputs, outputs) = shape_of(node), _widths(node)
    generator = max(1, inputs // 4) * (inputs + outputs)
    if shape is not None and len(shape) == 2 and generator >= inputs * outputs:
        raise NoSite(f"a generator of {generator} multiply-accumulates would cost more than the layer's {inputs * outputs}")


def _followers(region: Region) -> dict[fx.Node, fx.Node]:
    """Convolutions whose channels go one by one, or group by group, into a grouped convolution and nowhere else, and that convolution."""
    followed: dict[fx.Node, fx.Node] = {}
    for node in region.nodes:
        conv = conv_of(node)
        if conv is None or conv.groups == 1 or not tensor_inputs(node):
            continue
        at = tensor_inputs(node)[0]
        while len(at.users) == 1 and (is_norm(at) or is_activation(at) or is_neutral(at) or is_pooling(at)) and tensor_inputs(at):
            at = tensor_inputs(at)[0]
        feeder = conv_of(at)
        if feeder is not None and len(at.users) == 1 and feeder.groups == 1 and feeder.out_channels == conv.in_channels:
            followed[at] = node
    return followed


def _pooled_and_back(region: Region) -> set[fx.Node]:
    """Nodes on pooled vectors that something on a map is scaled by or joined with: the gates of squeeze-and-excitation."""
    inside: set[fx.Node] = set()
    for node in reversed(region.nodes):
        if is_pooled(node) and any(user in inside or (user.op != "output" and not is_pooled(user)) for user in node.users):
            inside.add(node)
    return inside


def _check_source(region: Region, first: fx.Node, last: fx.Node) -> None:
    """The gate runs behind the layer, and has to find the layer's input as it was."""
    source = tensor_inputs(first)[0]
    for node in _between(region, first, last):
        if source in node.all_input_nodes[:1] and works_in_place(node):
            raise NoSite(f"{path_of(node)} overwrites its input before a gate could read it")


def _between(region: Region, first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    for node in region.nodes:
        if first < node and not last < node:
            yield node
