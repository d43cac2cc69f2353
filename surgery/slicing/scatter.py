"""Adding a branch that has some of a stage's channels to the stage, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.surgery.kernels.moving import ADD_CHANNELS, added
from chansurg.surgery.layer import RecipeLayer, Target


class ScatterAdd(RecipeLayer):
    """``stage + branch`` where the branch has only the channels ``kept``; no zeros are written or added for the others.

    Args:
        kept: for each of the branch's channels, its place among the stage's.
        channel_dim: 1 for ``[B, C, …]``, -1 for ``[B, …, C]``.
        branch: which of the two operands is the branch, 0 or 1.
    """

    keeps_nonnegative = True
    index: Tensor

    def __init__(self, kept: Sequence[int], channel_dim: int = 1, branch: int = 1) -> None:
        super().__init__()
        if branch not in (0, 1) or len(set(kept)) != len(kept) or min(kept, default=0) < 0:
            raise ValueError(f"a branch {branch} with the places {list(kept)!r:.80} cannot be added")
        self.kept = tuple(kept)
        self.channel_dim = channel_dim
        self.branch = branch
        self.register_buffer("index", torch.tensor(self.kept, dtype=torch.int64))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Set the places; nothing is drawn."""
        self.index.copy_(torch.tensor(self.kept, dtype=torch.int64))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Add. The operands are in the order of the addition this stands for; the result is shaped as the stage, ``[B, C, …]``."""
        stage, branch = (first, second) if self.branch == 1 else (second, first)
        return _scatter_add(stage, branch, self.channel_dim, self.index)

    def for_runtime(self, target: Target) -> nn.Module:
        """A gathering form where the stage's width is known; see :class:`GatherAdd`."""
        stage = target.shapes[1 - self.branch] if len(target.shapes) == 2 else ()
        return GatherAdd(self, stage[self.channel_dim], eager=target.runtime == "eager") if stage else self

    def reason_against_narrowing(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> str | None:
        """``in_channels`` are the branch's, ``out_channels`` the stage's; what the branch keeps must have a place in the stage."""
        branch = range(len(self.kept)) if in_channels is None else in_channels
        if not branch:
            return "no channel of the branch would be left"
        if min(branch) < 0 or max(branch) >= len(self.kept):
            return f"its branch has {len(self.kept)} channels"
        if out_channels is not None and not {self.kept[i] for i in branch} <= set(out_channels):
            return "the branch would keep a channel that the stage lets go of"
        return None

    def narrow(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> None:
        """Keep these channels of the branch and of the stage."""
        kept = self.kept if in_channels is None else tuple(self.kept[i] for i in in_channels)
        if out_channels is not None:
            place = {old: new for new, old in enumerate(out_channels)}
            kept = tuple(place[i] for i in kept)
        self.kept = kept
        self.index = torch.tensor(kept, dtype=torch.int64, device=self.index.device)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{len(self.kept)} channels, branch={self.branch}"


class GatherAdd(nn.Module):
    """The same sum for inference: every channel of the stage fetches its channel of the branch, or one of zeros.

    Compilers fuse a gather with the sum, and not a scatter; ONNX Runtime scatters on a transposed copy, in about twice the time. Torch
    gathers faster than it scatters where channels are innermost in memory, and where they are not, it scatters faster.

    Args:
        layer: which it stands for.
        width: channels of the stage.
        eager: choose by how the tensors lie in memory, when it is called.
    """

    index: Tensor
    places: Tensor

    def __init__(self, layer: ScatterAdd, width: int, *, eager: bool) -> None:
        super().__init__()
        self.channel_dim, self.branch, self.eager = layer.channel_dim, layer.branch, eager
        self.register_buffer("index", layer.index)
        places = torch.full((width,), len(layer.kept), dtype=torch.int64)
        places[list(layer.kept)] = torch.arange(len(layer.kept))
        self.register_buffer("places", places.to(layer.index.device), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """As :meth:`ScatterAdd.forward`."""
        stage, branch = (first, second) if self.branch == 1 else (second, first)
        channel = self.channel_dim % stage.ndim
        if self.eager and stage.stride(channel) != 1:
            return _scatter_add(stage, branch, channel, self.index)
        filled = functional.pad(branch, (*(0, 0) * (stage.ndim - 1 - channel), 0, 1))
        if not self.eager:
            return stage + filled.index_select(channel, self.places)
        innermost = filled.movedim(channel, -1)
        return stage + innermost.gather(-1, self.places.expand(*innermost.shape[:-1], -1)).movedim(-1, channel)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.index.numel()} of {self.places.numel()} channels, branch={self.branch}"


def _scatter_add(stage: Tensor, branch: Tensor, channel_dim: int, index: Tensor) -> Tensor:
    if stage.dtype != branch.dtype:
        dtype = torch.promote_types(stage.dtype, branch.dtype)
        stage, branch = stage.to(dtype), branch.to(dtype)
    channel = channel_dim % stage.ndim
    if channel != 1:
        return _scatter_add(stage.movedim(channel, 1), branch.movedim(channel, 1), 1, index).movedim(1, channel)
    return ADD_CHANNELS(stage, branch, index) if ADD_CHANNELS.serves(stage) else added(stage, branch, index)
