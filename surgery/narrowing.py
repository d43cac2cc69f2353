"""Narrowing one layer in place: keep some of its input or output channels, slice its parameters.

One handler a layer type. The kept indices are given; what to keep is the recipes' business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from chansurg.surgery.errors import Refusal
from chansurg.surgery.memory_format import is_channels_last, to_channels_last

Indices = Sequence[int]


def narrow(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    """Slice a layer in place.

    Args:
        module: a convolution, linear layer or norm, on any device.
        path: its path, for messages.
        in_channels: indices of the input channels kept, in order; ``None`` keeps all.
        out_channels: likewise for the output; for norms and depthwise convolutions these are the channels.

    Raises:
        Refusal: for a layer that cannot be narrowed like that. The layer is then as it was.
    """
    handler = _handler(module)
    if handler is None:
        raise refuse(path, f"{type(module).__name__} has no rule for being narrowed")
    if "weight" not in module._parameters and "weight" not in module._buffers:
        raise refuse(path, "its weight is computed from other tensors (a parametrization, or a pruning mask)")
    width_in, width_out = _widths(module)
    _check_indices(path, "input", in_channels, width_in)
    _check_indices(path, "output", out_channels, width_out)
    handler(module, path, in_channels, out_channels)


def _widths(module: nn.Module) -> tuple[int, int]:
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


def _check_indices(path: str, side: str, indices: Indices | None, width: int) -> None:
    if indices is None:
        return
    if not indices:
        raise refuse(path, f"no {side} channel would be left")
    if min(indices) < 0 or max(indices) >= width:
        raise refuse(path, f"it has {width} {side} channels, and channel {min(indices) if min(indices) < 0 else max(indices)} was named")
    if len(set(indices)) != len(indices):
        raise refuse(path, f"an {side} channel was named twice")


def can_narrow(module: nn.Module) -> bool:
    """Whether there is a rule for this type of layer."""
    return _handler(module) is not None


def _handler(module: nn.Module) -> Callable[[nn.Module, str, Indices | None, Indices | None], None] | None:
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


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution has one input channel a group, and more than one group."""
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and module.groups == module.in_channels


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


def _narrow_conv(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.modules.conv._ConvNd)
    if module.transposed:
        raise refuse(path, "it is a transposed convolution")
    if is_depthwise(module):
        kept = out_channels if out_channels is not None else in_channels
        if kept is None:
            return
        if module.out_channels != module.in_channels:
            raise refuse(path, "it is a depthwise convolution with several outputs a channel")
        _select(module, "weight", 0, kept)
        _select(module, "bias", 0, kept)
        module.in_channels = module.out_channels = module.groups = len(kept)
        return
    if in_channels is not None:
        per_group = module.in_channels // module.groups
        groups = [[i % per_group for i in in_channels if i // per_group == group] for group in range(module.groups)]
        if len({len(group) for group in groups}) != 1 or list(in_channels) != sorted(in_channels, key=lambda i: i // per_group):
            raise refuse(path, f"its {module.groups} groups would keep unequal numbers of input channels")
        if module.groups == 1:
            _select(module, "weight", 1, in_channels)
        else:
            _select_per_group(module, groups)
        module.in_channels = len(in_channels)
    if out_channels is not None:
        per_group = module.out_channels // module.groups
        counts = {sum(1 for i in out_channels if i // per_group == group) for group in range(module.groups)}
        if len(counts) != 1 or list(out_channels) != sorted(out_channels, key=lambda i: i // per_group):
            raise refuse(path, f"its {module.groups} groups would keep unequal numbers of output channels")
        _select(module, "weight", 0, out_channels)
        _select(module, "bias", 0, out_channels)
        module.out_channels = len(out_channels)


def _select_per_group(module: nn.modules.conv._ConvNd, groups: Sequence[Indices]) -> None:
    weight = module.weight
    rows = weight.detach().chunk(module.groups, 0)
    kept = [row.index_select(1, torch.tensor(list(group), device=weight.device)) for row, group in zip(rows, groups, strict=True)]
    joined = torch.cat(kept, 0)
    module.weight = nn.Parameter(to_channels_last(joined) if is_channels_last(weight) else joined, requires_grad=weight.requires_grad)


def _narrow_linear(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.Linear)
    if in_channels is not None:
        _select(module, "weight", 1, in_channels)
        module.in_features = len(in_channels)
    if out_channels is not None:
        _select(module, "weight", 0, out_channels)
        _select(module, "bias", 0, out_channels)
        module.out_features = len(out_channels)


def _narrow_norm(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    kept = out_channels if out_channels is not None else in_channels
    if kept is None:
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(module, name, 0, kept)
    if hasattr(module, "num_features"):
        module.num_features = len(kept)  # type: ignore[assignment]


def _narrow_layer_norm(module: nn.Module, path: str, in_channels: Indices | None, out_channels: Indices | None) -> None:
    assert isinstance(module, nn.LayerNorm)
    kept = out_channels if out_channels is not None else in_channels
    if kept is None:
        return
    if len(module.normalized_shape) != 1:
        raise refuse(path, "it normalises over more than the channels")
    _select(module, "weight", 0, kept)
    _select(module, "bias", 0, kept)
    module.normalized_shape = (len(kept),)


_HANDLERS: tuple[tuple[type[nn.Module], Callable[[nn.Module, str, Indices | None, Indices | None], None]], ...] = (
    (nn.modules.conv._ConvNd, _narrow_conv),
    (nn.Linear, _narrow_linear),
    (nn.modules.batchnorm._BatchNorm, _narrow_norm),
    (nn.LayerNorm, _narrow_layer_norm),
)
