"""Scaling one layer in place: multiply what it puts out, or what it makes of its input, channel by channel.

A factor that is a power of two changes no bit of what is computed in floating point, in any precision, as long as nothing overflows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chansurg.surgery.editing.narrowing import reason_against_touching, widths
from chansurg.surgery.errors import Refusal

Factors = float | Sequence[float]
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def scale(module: nn.Module, path: str, side: str, factors: Factors, channels: Sequence[int] | None) -> None:
    """Multiply a layer in place.

    Args:
        module: a convolution, linear layer or norm, on any device.
        path: its path, for messages.
        side: ``out`` multiplies what it puts out: weight rows and bias; of a norm its scale and shift. ``in`` multiplies the weight's input
            slices, so that it gives for ``x`` what it gave for ``factors * x``.
        factors: one number, or one for each of the channels.
        channels: the channels, by index; for a grouped convolution's inputs they count over all groups. ``None`` is all.

    Raises:
        Refusal: for a layer that cannot be scaled like that. The layer is then as it was.
    """
    reason = reason_against_scaling(module, side, factors, channels)
    if reason is not None:
        raise Refusal(
            f"{path} cannot be scaled: {reason}.",
            where=path,
            not_done="The network was not converted.",
            to_do="Carry out the plan on the network that it was made for.",
        )
    by_channel = _by_channel(module, side, factors, channels)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if side == "in":
        groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
        rows = by_channel.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)  # [out_channels, in_channels / groups]
        _multiply(module, "weight", rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2)))
    else:
        _multiply(module, "weight", by_channel.reshape(-1, *(1,) * (weight.ndim - 1)))
        _multiply(module, "bias", by_channel)


def reason_against_scaling(module: nn.Module, side: str, factors: Factors, channels: Sequence[int] | None) -> str | None:
    """Why a layer cannot be multiplied like that, or ``None``; nothing is changed. Arguments as for :func:`scale`."""
    layer = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    if not layer and not isinstance(module, _NORMS) and type(module).__name__ != "FrozenBatchNorm2d":
        return f"{type(module).__name__} has no rule for being scaled"
    if isinstance(module, nn.modules.conv._ConvNd) and module.transposed:
        return "it is a transposed convolution"
    if (reason := reason_against_touching(module)) is not None:
        return reason
    if not layer and side == "in":
        return "it is a norm, which takes any factor out of its input again"
    if getattr(module, "weight", None) is None:
        return "it has no scale that could take a factor"
    width = widths(module)[side == "out"]
    named = range(width) if channels is None else channels
    if len(named) and (min(named) < 0 or max(named) >= width):
        return f"it has {width} {side}put channels, and channel {min(named) if min(named) < 0 else max(named)} was named"
    if not isinstance(factors, (int, float)) and len(factors) != len(named):
        return f"there are {len(factors)} factors for {len(named)} channels"
    return None


def _by_channel(module: nn.Module, side: str, factors: Factors, channels: Sequence[int] | None) -> torch.Tensor:
    """One factor for every channel, 1 where none is named: ``[C]``."""
    width = widths(module)[side == "out"]
    by_channel = torch.ones(width, dtype=torch.float64)
    index = torch.arange(width) if channels is None else torch.tensor(list(channels), dtype=torch.long)
    by_channel[index] = torch.tensor(factors, dtype=torch.float64)
    return by_channel


def _multiply(module: nn.Module, name: str, factors: torch.Tensor) -> None:
    """Multiply a tensor where it is, so that its memory format and whoever shares it stay; rounded once."""
    tensor = getattr(module, name, None)
    if tensor is not None:
        precise = torch.promote_types(tensor.dtype, torch.float32)
        with torch.no_grad():
            tensor.copy_(tensor.to(precise) * factors.to(tensor.device, precise))
