"""Folding norms: in eval mode a batch norm is one factor and one summand a channel, which the layers around it can take in.

*Back* into the convolution or linear layer whose channels it works on; where several are concatenated ahead of it, into each its share;
into a recipe's layer through the layers that its channels come out of. Else *ahead* into the one layer that reads it, where that adds no
padding. Layer, group and instance norms without running statistics depend on each image, and stay.

Source: Markuš, "Fusing batch normalization and convolution in runtime", 2018; Jacob et al., "Quantization and Training of Neural
Networks", CVPR 2018, Section 3.2. The numbers are computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from chansurg.surgery.editing.narrowing import reason_against_touching
from chansurg.surgery.edits.places import join_path
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.survey import Survey
from chansurg.surgery.survey.kinds import function_name, is_norm, linear_of, module_of, path_of, shape_of, tensor_inputs
from chansurg.surgery.survey.regions import Region

_NORM_FORWARDS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward, nn.modules.instancenorm._InstanceNorm.forward)
_WITH_ACTIVATION = frozenset(("BatchNormAct2d",))
_PADDING_ITSELF = frozenset(("Conv2dSame",))
"""Convolutions that pad by what they are given and are a convolution otherwise."""
_LIKE = frozenset(("reshape_as", "view_as"))
_RESHAPES = frozenset(("reshape", "view", "flatten")) | _LIKE
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class Share:
    """A layer that takes in a norm, or a part of it.

    Args:
        path: of a convolution or linear layer.
        begin: the norm's first channel that it takes.
        end: the one behind the last.
    """

    path: str
    begin: int
    end: int


@dataclass(frozen=True)
class Fold:
    """A norm that gives way.

    Args:
        norm: its path.
        shares: who takes it in.
        ahead: whether it goes into the layer that reads it, and not into those that it reads.
    """

    norm: str
    shares: tuple[Share, ...]
    ahead: bool = False


def thaw(network: nn.Module) -> nn.Module:
    """Put a batch norm with the same numbers in the place of each of torchvision's frozen ones, in place.

    A survey takes batch norms for what they are; a frozen one's forward is arithmetic, which it follows into its parts.
    """
    for module in list(network.modules()):
        for name, norm in list(module.named_children()):
            if type(norm).__name__ == "FrozenBatchNorm2d" and type(norm).__module__.startswith("torchvision."):
                frozen: Any = norm
                twin = nn.BatchNorm2d(frozen.weight.shape[0], frozen.eps, device=frozen.weight.device, dtype=frozen.weight.dtype)
                twin.load_state_dict(frozen.state_dict(), strict=False)
                setattr(module, name, twin.eval())
    return network


def norms_inside(network: nn.Module) -> list[Fold]:
    """The norms that recipes' layers name as foldable within themselves."""
    return [
        Fold(join_path(path, norm), (Share(join_path(path, into), 0, _width(layer.get_submodule(norm))),))
        for path, layer in network.named_modules()
        if isinstance(layer, RecipeLayer)
        for into, norm in layer.norms_inside()
    ]


def find_fold(survey: Survey, region: Region, node: fx.Node) -> Fold | str | None:
    """How the norm that ``node`` calls can give way; the reason where it cannot; ``None`` where it calls none with running statistics."""
    norm = module_of(node)
    if norm is None or not is_norm(node) or getattr(norm, "running_var", None) is None:
        return None
    reason = _against_norm(norm) or survey.uneditable(region, node, replaces=True)
    if reason is not None:
        return reason
    shape = shape_of(node)
    if shape is None:
        return "the shape of what it works on is not known"
    sources = _sources(tensor_inputs(node)[0], 1 % len(shape), 0)
    if isinstance(sources, str):
        behind = None if type(norm).__name__ in _WITH_ACTIVATION else _reader(survey, region, node)
        return sources if behind is None else Fold(path_of(node), (Share(behind, 0, _width(norm)),), ahead=True)
    shares: list[Share] = []
    for source, begin in sources:
        found = _shares(survey, region, source, begin)
        if isinstance(found, str):
            return found
        shares += found
    return Fold(path_of(node), tuple(shares))


def _against_norm(norm: nn.Module) -> str | None:
    name = type(norm).__name__
    if type(norm).forward not in _NORM_FORWARDS and name not in _WITH_ACTIVATION:
        return f"{name} does more than its kind"
    return "code of somebody's own is called with it" if norm._forward_hooks else None


def _sources(node: fx.Node, axis: int, begin: int) -> list[tuple[fx.Node, int]] | str:
    """The layers whose output channels ``node`` puts out along ``axis``, each with the place of its first; nobody else reads them."""
    if len(_readers(node)) != 1:
        return f"what {path_of(node)} gives is read by others too"
    module, shape = module_of(node), shape_of(node)
    if isinstance(module, (nn.modules.conv._ConvNd, RecipeLayer)):
        return [(node, begin)] if axis == 1 else f"it works across another axis than the channels of {path_of(node)}"
    if linear_of(node) is not None:
        last = shape is not None and axis == len(shape) - 1
        return [(node, begin)] if last else f"it works across another axis than the channels of {path_of(node)}"
    inputs = tensor_inputs(node)
    before = shape_of(inputs[0]) if inputs else None
    if isinstance(module, _PASSING):
        return _sources(inputs[0], axis, begin)
    if function_name(node) in _RESHAPES and before is not None and shape is not None and axis == len(shape) - 1 and before[-1] == shape[-1]:
        return _sources(inputs[0], len(before) - 1, begin)
    if function_name(node) in ("cat", "concat", "concatenate") and _joins(node, axis):
        found: list[tuple[fx.Node, int]] = []
        for part in inputs:
            width = shape_of(part)
            sources = _sources(part, axis, begin) if width is not None else f"the shape of {path_of(part)} is not known"
            if isinstance(sources, str) or width is None:
                return sources
            found += sources
            begin += width[axis]
        return found
    return f"what it works on comes out of {type(module).__name__ if module is not None else function_name(node) or node.op}"


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a node's numbers; its shape is no secret."""
    return [
        user
        for user in node.users
        if function_name(user) not in ("size", "dim", "getattr") and not (function_name(user) in _LIKE and user.args[0] is not node)
    ]


def _joins(node: fx.Node, axis: int) -> bool:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    shape = shape_of(node)
    parts = node.args[0] if node.args else None
    whole = isinstance(parts, (list, tuple)) and len(set(parts)) == len(parts) == len(tensor_inputs(node))
    return whole and isinstance(dim, int) and shape is not None and dim % len(shape) == axis


def _shares(survey: Survey, region: Region, node: fx.Node, begin: int) -> list[Share] | str:
    """The layers that a source consists of, each with its share of the norm."""
    module, path = module_of(node), path_of(node)
    if (reason := survey.uneditable(region, node, replaces=True)) is not None:
        return f"{path} cannot take it: {reason}"
    if not isinstance(module, RecipeLayer):
        reason = _against_layer(module)
        return [Share(path, begin, begin + _width(module))] if reason is None else f"{path} cannot take it: {reason}"
    shares: list[Share] = []
    for name in module.last_layers():
        layer = module.get_submodule(name)
        if (reason := _against_layer(layer)) is not None:
            return f"{join_path(path, name)} cannot take it: {reason}"
        shares.append(Share(join_path(path, name), begin, begin + _width(layer)))
        begin += _width(layer)
    return shares or f"{path} is a {type(module).__name__}, which takes in no norm"


def _against_layer(layer: nn.Module | None) -> str | None:
    kind = next((kind for kind in (*_CONVS, nn.Linear) if isinstance(layer, kind)), None)
    if layer is None or kind is None:
        return "it is no layer with a weight"
    if type(layer).forward is not kind.forward and type(layer).__name__ not in _PADDING_ITSELF:
        return f"{type(layer).__name__} does more than its kind"
    if getattr(type(layer), "_conv_forward", None) is not getattr(kind, "_conv_forward", None):
        return f"{type(layer).__name__} does more than its kind"
    if layer._forward_hooks:
        return "code of somebody's own is called with it"
    return None if isinstance(layer, _TRANSPOSED) else reason_against_touching(layer)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def _reader(survey: Survey, region: Region, node: fx.Node) -> str | None:
    """The one layer that reads the norm at ``node``, and can take it in: a linear layer, or a convolution that does not pad."""
    users = _readers(node)
    layer = module_of(users[0]) if len(users) == 1 else None
    if isinstance(layer, _PASSING):
        return _reader(survey, region, users[0])
    if layer is None or isinstance(layer, _TRANSPOSED) or _against_layer(layer) is not None:
        return None
    if survey.uneditable(region, users[0], replaces=True) is not None:
        return None
    if isinstance(layer, nn.modules.conv._ConvNd):
        pads = type(layer).__name__ in _PADDING_ITSELF or layer.padding not in ("valid", (0,) * len(layer.kernel_size))
        return None if pads else path_of(users[0])
    shape = shape_of(node)
    return path_of(users[0]) if shape is not None and len(shape) == 2 else None


def _width(module: nn.Module | None) -> int:
    """Channels that a layer puts out, or that a norm works on."""
    for name in ("out_channels", "out_features", "num_features"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    running: Any = getattr(module, "running_var", None)
    return int(running.shape[0])


@torch.no_grad()
def carry_out(network: nn.Module, fold: Fold) -> None:
    """Put a norm's numbers into the layers that take them, in place; what is left of the norm is its activation, or nothing."""
    norm = network.get_submodule(fold.norm)
    scale, shift = scale_and_shift(norm)
    for share in fold.shares:
        layer, part = network.get_submodule(share.path), slice(share.begin, share.end)
        (_take_ahead if fold.ahead else _take_back)(layer, scale[part], shift[part])
    parent, _, name = fold.norm.rpartition(".")
    setattr(network.get_submodule(parent), name, activation_of(norm) or nn.Identity())


def activation_of(norm: nn.Module) -> nn.Module | None:
    """The activation that a norm applies by itself, as those of timm do."""
    activation = getattr(norm, "act", None)
    return activation if type(norm).__name__ in _WITH_ACTIVATION and isinstance(activation, nn.Module) else None


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a norm with running statistics does in eval mode, ``y = scale * x + shift``: two tensors ``[C]`` in float64."""
    held: Any = norm
    scale = (held.running_var.double() + float(held.eps)).rsqrt()
    if held.weight is not None:
        scale = scale * held.weight.double()
    shift = -held.running_mean.double() * scale
    return scale, shift if held.bias is None else shift + held.bias.double()


def _take_back(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """``y -> scale * y + shift`` of what the layer puts out."""
    weight: Any = layer.weight
    rows = scale
    if isinstance(layer, _TRANSPOSED):  # [in, out / groups, …]
        by_group = scale.reshape(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, 0)
        rows = by_group.reshape(*by_group.shape, *(1,) * (weight.ndim - 2))
    else:
        rows = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    weight.copy_((weight.double() * rows).to(weight.dtype))
    bias: Any = layer.bias
    _set_bias(layer, shift if bias is None else shift + scale * bias.double())


def _take_ahead(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """The layer gives for ``x`` what it gave for ``scale * x + shift``."""
    weight: Any = layer.weight
    groups = layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1
    rows = weight.shape[0] // groups
    factors, summands = (values.reshape(groups, -1).repeat_interleave(rows, 0) for values in (scale, shift))  # [out, in / groups]
    wide = weight.double()
    added = (wide.flatten(2).sum(2) if wide.ndim > 2 else wide).mul(summands).sum(1)
    weight.copy_((wide * factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2))).to(weight.dtype))
    bias: Any = layer.bias
    _set_bias(layer, added if bias is None else added + bias.double())


def _set_bias(layer: nn.Module, values: Tensor) -> None:
    weight: Any = layer.weight
    if layer._parameters.get("bias") is None:
        layer.bias = nn.Parameter(torch.zeros(values.shape, dtype=weight.dtype, device=weight.device), requires_grad=weight.requires_grad)
    bias: Any = layer.bias
    bias.copy_(values.to(bias.dtype))
