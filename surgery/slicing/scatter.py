"""Adding a branch that has some of a stage's channels to the stage, each at its own place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chansurg.surgery.layer import RecipeLayer


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
        if stage.dtype != branch.dtype:
            dtype = torch.promote_types(stage.dtype, branch.dtype)
            stage, branch = stage.to(dtype), branch.to(dtype)
        # A copy keeps the layout in memory, which index_add by itself does not.
        return stage.clone().index_add_(self.channel_dim, self.index, branch)

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
