"""Narrowing in place: a layer keeps some of its input or output channels, and its parameters are sliced; so is one that no layer holds.

One handler a layer type. The kept indices are given; what to keep is the recipes' business.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from chansurg.surgery.errors import Refusal
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.memory_format import is_channels_last, to_channels_last
from chansurg.surgery.survey.kinds import is_depthwise

Indices = Sequence[int]
_Handler = Callable[[nn.Module, Indices | None, Indices | None], None]

_WEIGHTS = frozenset(("weight", "bias"))
_NORM_TENSORS = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


def narrow(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    """Slice a layer in place.

    Args:
        module: a convolution, linear layer or norm, on any device.
        path: its path, for messages.
        in_channels: indices of the input channels kept, in order; ``None`` keeps all.
        out_channels: likewise for the output; for norms and depthwise convolutions these are the channels. Of a grouped convolution,
            groups that keep neither inputs nor outputs go; the others keep equally many.

    Raises:
        Refusal: for a layer that cannot be narrowed like that. The layer is then as it was.
    """
    reason = reason_against(module, in_channels, out_channels)
    if reason is not None:
        raise refuse(path, reason)
    if isinstance(module, RecipeLayer):
        module.narrow(in_channels, out_channels)
        return
    handler = _handler(module)
    assert handler is not None
    handler(module, in_channels, out_channels)


def narrow_parameter(owner: nn.Module, name: str, path: str, channels: Indices) -> None:
    """Slice a parameter that belongs to no layer, such as the scale that ends a ConvNeXt block, in place.

    Args:
        owner: the module that holds it.
        name: its name there.
        path: its path, for messages.
        channels: indices kept, in order, along its one dimension of more than one entry.

    Raises:
        Refusal: for a parameter that cannot be sliced like that. It is then as it was.
    """
    if (reason := reason_against_parameter(owner, name, channels)) is not None:
        raise refuse(path, reason)
    _select(owner, name, _channel_dims(owner._parameters[name])[0], channels)


def reason_against_parameter(owner: nn.Module, name: str, channels: Indices) -> str | None:
    """Why a module's own parameter cannot keep just these channels, or ``None``; arguments as for :func:`narrow_parameter`."""
    parameter = owner._parameters.get(name)
    if parameter is None:
        return f"{type(owner).__name__} holds no parameter {name!r}"
    if isinstance(owner, RecipeLayer) or can_narrow(owner):
        return f"it is part of a {type(owner).__name__}, which is narrowed as a whole"
    dims = _channel_dims(parameter)
    if len(dims) != 1:
        return f"its shape {list(parameter.shape)} does not tell where its channels lie"
    return reason_against_indices("", channels, parameter.shape[dims[0]])


def _channel_dims(parameter: torch.Tensor | None) -> list[int]:
    return [] if parameter is None else [dim for dim, size in enumerate(parameter.shape) if size != 1]


def reason_against(module: nn.Module, in_channels: Indices | None, out_channels: Indices | None) -> str | None:
    """Why a layer cannot keep just these channels, or ``None``; nothing is changed. Arguments as for :func:`narrow`."""
    if isinstance(module, RecipeLayer):
        return module.reason_against_narrowing(in_channels, out_channels)
    if _handler(module) is None:
        return f"{type(module).__name__} has no rule for being narrowed"
    if (reason := reason_against_touching(module)) is not None:
        return reason
    width_in, width_out = widths(module)
    return (
        reason_against_indices("input", in_channels, width_in)
        or reason_against_indices("output", out_channels, width_out)
        or (_against_conv(module, in_channels, out_channels) if isinstance(module, nn.modules.conv._ConvNd) else None)
    )


def reason_against_touching(module: nn.Module) -> str | None:
    """Why the tensors of a layer are not those that its type computes with, channel by channel, or ``None``."""
    if "weight" not in module._parameters and "weight" not in module._buffers:
        return "its weight is computed from other tensors (a parametrization, or a pruning mask)"
    if others := _unknown_tensors(module):
        return f"it holds tensors that no rule slices ({', '.join(others[:3])}{', …' if len(others) > 3 else ''})"
    return _against_shape(module)


def _unknown_tensors(module: nn.Module) -> list[str]:
    """Parameters and buffers beyond those that the rule slices; single numbers fit any width."""
    known = _WEIGHTS if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) else _NORM_TENSORS
    held = itertools.chain(module.named_parameters(), module.named_buffers())
    return [name for name, tensor in held if name not in known and tensor.numel() != 1]


def _against_shape(module: nn.Module) -> str | None:
    """A weight that is stored in another form (quantised and packed, say) cannot be sliced by channels."""
    if isinstance(module, nn.LayerNorm):
        return "it normalises over more than the channels" if len(module.normalized_shape) != 1 else None
    weight = module.weight
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or not isinstance(weight, torch.Tensor):
        return None
    width_in, width_out = widths(module)
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    return None if tuple(weight.shape[:2]) == (width_out, width_in // groups) else "its weight is stored in a form of its own"


def _against_conv(conv: nn.modules.conv._ConvNd, in_channels: Indices | None, out_channels: Indices | None) -> str | None:
    if conv.transposed:
        return "it is a transposed convolution"
    if is_depthwise(conv):
        if conv.in_channels == conv.out_channels or (in_channels is None and out_channels is None):
            return None
        if in_channels is None or out_channels is None:
            return "it is a depthwise convolution with several outputs a channel"
    staying = []
    for side, kept, width in (("input", in_channels, conv.in_channels), ("output", out_channels, conv.out_channels)):
        by_group = _by_group(range(width) if kept is None else kept, width, conv.groups)
        staying.append([group for group, channels in enumerate(by_group) if channels])
        in_order = kept is None or list(kept) == sorted(kept, key=lambda i: i // (width // conv.groups))
        if not in_order or len({len(channels) for channels in by_group if channels}) != 1:
            return f"its {conv.groups} groups would keep unequal numbers of {side} channels"
    return None if staying[0] == staying[1] else f"its {conv.groups} groups would not lose inputs and outputs alike"


def _by_group(kept: Indices, width: int, groups: int) -> list[list[int]]:
    """The channels kept in each group, counted from the group's first."""
    size = width // groups
    return [[i - group * size for i in kept if i // size == group] for group in range(groups)]


def widths(module: nn.Module) -> tuple[int, int]:
    """Input and output channels as they are now; for a norm both are its channels."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1], module.normalized_shape[-1]
    channels = next((t.shape[0] for name in ("weight", "running_mean") if (t := getattr(module, name, None)) is not None), None)
    channels = int(getattr(module, "num_features", 0)) if channels is None else channels
    return channels, channels


def reason_against_indices(side: str, indices: Indices | None, width: int) -> str | None:
    """Why these are not some of ``width`` channels of a side (``input``, ``output`` or neither), each once, or ``None``."""
    if indices is None:
        return None
    channel = f"{side} channel".lstrip()
    if not indices:
        return f"no {channel} would be left"
    if min(indices) < 0 or max(indices) >= width:
        return f"it has {width} {channel}s, and channel {min(indices) if min(indices) < 0 else max(indices)} was named"
    if len(set(indices)) != len(indices):
        return f"one {channel} was named twice"
    return None


def can_narrow(module: nn.Module) -> bool:
    """Whether there is a rule for this type of layer."""
    return _handler(module) is not None


def _handler(module: nn.Module) -> _Handler | None:
    for kind, handler in _HANDLERS:
        if isinstance(module, kind):
            return handler
    # Detectors use torchvision's frozen batch norm; its library is imported only by networks that have one.
    return _narrow_norm if type(module).__name__ == "FrozenBatchNorm2d" else None


def refuse(path: str, reason: str) -> Refusal:
    """The error for a layer that cannot be narrowed."""
    return Refusal(
        f"{path} cannot be narrowed: {reason}.",
        where=path,
        not_done="The network was not converted.",
        to_do="Leave this site out, or choose another factor.",
    )


def _select(module: nn.Module, name: str, axis: int, indices: Indices) -> None:
    tensor = getattr(module, name, None)
    if tensor is None:
        return
    index = torch.tensor(list(indices), dtype=torch.long, device=tensor.device)
    kept = tensor.detach().index_select(axis, index)
    if is_channels_last(tensor):
        kept = to_channels_last(kept)
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
    else:
        setattr(module, name, kept)


def _narrow_conv(module: nn.Module, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.modules.conv._ConvNd)
    if is_depthwise(module) and module.in_channels == module.out_channels:
        kept = out_channels if out_channels is not None else in_channels
        if kept is None:
            return
        _select(module, "weight", 0, kept)
        _select(module, "bias", 0, kept)
        module.in_channels = module.out_channels = module.groups = len(kept)
        return
    if in_channels is not None:
        if module.groups == 1:
            _select(module, "weight", 1, in_channels)
        else:
            _select_per_group(module, _by_group(in_channels, module.in_channels, module.groups))
        module.in_channels = len(in_channels)
    if out_channels is not None:
        staying = sum(1 for group in _by_group(out_channels, module.out_channels, module.groups) if group)
        _select(module, "weight", 0, out_channels)
        _select(module, "bias", 0, out_channels)
        module.out_channels = len(out_channels)
        module.groups = staying


def _select_per_group(module: nn.modules.conv._ConvNd, groups: Sequence[Indices]) -> None:
    """Slice the weight's inputs group by group; of a group that goes, the outputs go too, so its slices do not matter."""
    weight, width = module.weight, max(map(len, groups))
    rows = weight.detach().chunk(module.groups, 0)
    kept = [
        row.index_select(1, torch.tensor(list(group or range(width)), device=weight.device))
        for row, group in zip(rows, groups, strict=True)
    ]
    joined = torch.cat(kept, 0)
    module.weight = nn.Parameter(to_channels_last(joined) if is_channels_last(weight) else joined, requires_grad=weight.requires_grad)


def _narrow_linear(module: nn.Module, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.Linear)
    if in_channels is not None:
        _select(module, "weight", 1, in_channels)
        module.in_features = len(in_channels)
    if out_channels is not None:
        _select(module, "weight", 0, out_channels)
        _select(module, "bias", 0, out_channels)
        module.out_features = len(out_channels)


def _narrow_norm(module: nn.Module, in_channels: Indices | None, out_channels: Indices | None) -> None:
    kept = out_channels if out_channels is not None else in_channels
    if kept is None:
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(module, name, 0, kept)
    if hasattr(module, "num_features"):
        module.num_features = len(kept)  # type: ignore[assignment]


def _narrow_layer_norm(module: nn.Module, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.LayerNorm)
    kept = out_channels if out_channels is not None else in_channels
    if kept is None:
        return
    _select(module, "weight", 0, kept)
    _select(module, "bias", 0, kept)
    module.normalized_shape = (len(kept),)


_HANDLERS: tuple[tuple[type[nn.Module], _Handler], ...] = (
    (nn.modules.conv._ConvNd, _narrow_conv),
    (nn.Linear, _narrow_linear),
    (nn.modules.batchnorm._BatchNorm, _narrow_norm),
    (nn.LayerNorm, _narrow_layer_norm),
)
