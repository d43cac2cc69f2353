"""Pick-or-Mix: one channel out of each subset of channels, decided per image and fused per pixel.

A 1x1 convolution that squeezes ``C`` channels costs ``C * K`` multiply-accumulates a pixel. PiX spends them once an image: the
activation is first averaged to one number a channel, a small linear layer turns these into a probability for each of ``K`` subsets, and
the subset's maximum (pick) or mean (mix) is scaled by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from chansurg.recipes.pix.fusing import PICK_OR_MIX, fused
from chansurg.recipes.pix.options import OPERATORS
from chansurg.recipes.pix.partition import Subsets, check_partition, contiguous_runs, partition
from chansurg.recipes.pix.sampling import probability
from chansurg.surgery.editing.narrowing import reason_against_indices
from chansurg.surgery.errors import InputError
from chansurg.surgery.layer import RecipeLayer, Target

_LIMITS = {"pick": math.inf, "mix": -math.inf}
"""Thresholds of the operators that have none: every ``p`` is under the one, none under the other."""


class PickOrMix(RecipeLayer):
    """The PiX layer (Pick-or-Mix, Section 3, Equations 1 to 3).

    For ``x`` of shape ``[B, C, …]`` and ``K`` output channels::

        g = mean of |x| over everything but batch and channels      [B, C]    (Eq. 1)
        p = sigmoid(g theta^T + beta)                               [B, K]    (Section 3.2)
        y_i = p_i * max(subset i)   where p_i <= tau                          (Eq. 2, 3)
              p_i * mean(subset i)  elsewhere                       [B, K, …]

    A short subset is averaged over the channels it has. With subsets of one channel the layer acts like squeeze-and-excitation.

    Args:
        in_channels: ``C``.
        out_channels: ``K``, at most ``C``.
        zeta: channels in a subset; ``K`` must then be ``C / zeta`` rounded up. ``None``: subsets whose sizes differ by at most one.
        operator: ``pick-or-mix`` as above. The ablations: ``pick`` takes the maximum and ``mix`` the mean whatever ``p`` is;
            ``min`` is pick-or-mix with the minimum in the maximum's place, the mean above ``tau`` staying as it is.
        tau: the threshold on ``p``, from 0 to 1. ``pick`` and ``mix`` have no use for it.
        subsets: ``contiguous`` or ``strided``, see :func:`chansurg.recipes.pix.partition.partition`. One method in two memory
            layouts: strided subsets reduce over whole vectors where channels are innermost. Or lists of channels, every channel in one.
        constant: ``p`` at first, for every image and subset: ``theta`` starts at zero, and ``beta`` as what gives it. ``None``: as below.
        channel_dim: 1 for ``[B, C, …]`` with any number of further dimensions, -1 for ``[B, N, C]`` or ``[B, H, W, C]``.

    Attributes:
        theta: ``[K, C]``, Xavier uniform at first.
        beta: ``[K]``, zero at first.
        order: buffer, the channels as named subsets have them one after the other, int64 ``[C]``; ``None`` where none are named.

    Raises:
        InputError: for arguments outside what is said above.
    """

    keeps_nonnegative = True

    order: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        zeta: int | None = None,
        operator: str = "pick-or-mix",
        tau: float = 0.5,
        subsets: Subsets = "contiguous",
        constant: float | None = None,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        check_partition(in_channels, out_channels, zeta, subsets)
        _check_choices(operator, tau, constant, channel_dim)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.zeta = zeta
        self.operator = operator
        self.tau = tau
        self.subsets = subsets if isinstance(subsets, str) else [list(subset) for subset in subsets]
        self.constant = constant
        self.channel_dim = channel_dim
        self.register_buffer("order", None if isinstance(subsets, str) else torch.empty(in_channels, dtype=torch.int64))
        self.theta = nn.Parameter(torch.empty(out_channels, in_channels))
        self.beta = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    @property
    def in_features(self) -> int:
        """``in_channels``, under the name that code around a linear layer reads."""
        return self.in_channels

    @property
    def out_features(self) -> int:
        """``out_channels``, under the name that code around a linear layer reads."""
        return self.out_channels

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw ``theta`` anew (Xavier uniform, from ``generator`` if given) and zero ``beta`` (Section 3.2); or as ``constant`` says."""
        if self.constant is None:
            nn.init.xavier_uniform_(self.theta, generator=generator)
            nn.init.zeros_(self.beta)
        else:
            nn.init.zeros_(self.theta)
            nn.init.constant_(self.beta, math.log(self.constant / (1 - self.constant)))
        if self.order is not None and not self.order.is_meta:
            self.order.copy_(torch.tensor([channel for subset in self.subsets for channel in subset]))

    def subset_indices(self) -> list[list[int]]:
        """The input channels behind each output channel."""
        return partition(self.in_channels, self.out_channels, self.zeta, self.subsets)

    def probability(self, x: Tensor) -> Tensor:
        """The sampling probabilities ``p``: ``[B, C, …] -> [B, K]`` (``[B, …, C]`` with ``channel_dim=-1``)."""
        return probability(x, self.theta, self.beta, self.channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, …] -> [B, K, …]``, or ``[B, …, C] -> [B, …, K]`` with ``channel_dim=-1``; dtype and memory format are kept."""
        return self.fuse(x, self.probability(x).to(x.dtype))

    def fuse(self, x: Tensor, p: Tensor) -> Tensor:
        """What the layer makes of ``x`` under the sampling probabilities ``p`` ``[B, K]``, in the precision of ``x``."""
        channel = self.channel_dim % x.ndim
        x = x if channel == 1 else x.movedim(channel, 1)
        y = (PICK_OR_MIX if PICK_OR_MIX.serves(x) else fused)(x, p, *self.choice())
        return y if channel == 1 else y.movedim(1, channel)

    def choice(self) -> tuple[Tensor | None, list[int], list[int], bool, bool, float]:
        """The subsets and what is taken of each, as :func:`fused` has them behind ``p``."""
        strided = self.subsets == "strided"
        groups = contiguous_runs(self.in_channels, self.out_channels, None if strided else self.zeta)
        counts, sizes = [count for count, _ in groups], [size for _, size in groups]
        return self.order, counts, sizes, strided, self.operator == "min", _LIMITS.get(self.operator, self.tau)

    def for_runtime(self, target: Target) -> nn.Module:
        """See :mod:`chansurg.recipes.pix.forms`."""
        from chansurg.recipes.pix.forms import form_for

        return form_for(self, target)

    def reason_against_narrowing(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> str | None:
        """Why there would be no such layer: every output needs an input of its own."""
        kept_in, kept_out = self._widths(in_channels, out_channels)
        too_few = f"{kept_out} outputs would be left for {kept_in} inputs, and each needs one of its own" if kept_out > kept_in else None
        return (
            reason_against_indices("input", in_channels, self.in_channels)
            or reason_against_indices("output", out_channels, self.out_channels)
            or too_few
        )

    def narrow(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> None:
        """Keep these rows and columns of ``theta``, and divide the channels that are left into subsets anew, by the same rule.

        Where subsets of ``zeta`` channels do not make as many outputs as are kept, sizes that differ by at most one take their place. Of
        subsets that were named, neighbours in the order they were named in share one.
        """
        kept_in, kept_out = self._widths(in_channels, out_channels)
        with torch.no_grad():
            for dim, kept in enumerate((out_channels, in_channels)):
                if kept is not None:
                    index = torch.tensor(list(kept), dtype=torch.long, device=self.theta.device)
                    self.theta = nn.Parameter(self.theta.index_select(dim, index), requires_grad=self.theta.requires_grad)
                    if dim == 0:
                        self.beta = nn.Parameter(self.beta.index_select(0, index), requires_grad=self.beta.requires_grad)
        self.in_channels, self.out_channels = kept_in, kept_out
        if self.zeta is not None and kept_out != -(-kept_in // self.zeta):
            self.zeta = None
        if self.order is None or isinstance(self.subsets, str):
            return
        place = {channel: number for number, channel in enumerate(range(self.order.numel()) if in_channels is None else in_channels)}
        order = [place[channel] for subset in self.subsets for channel in subset if channel in place]
        self.subsets = [[order[i] for i in run] for run in partition(kept_in, kept_out, self.zeta, "contiguous")]
        self.order = torch.tensor(order, device=self.order.device)

    def _widths(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> tuple[int, int]:
        return (
            self.in_channels if in_channels is None else len(in_channels),
            self.out_channels if out_channels is None else len(out_channels),
        )

    def extra_repr(self) -> str:
        """The arguments, those at their defaults left out."""
        parts = [f"{self.in_channels} -> {self.out_channels}"]
        if self.zeta is not None:
            parts.append(f"zeta={self.zeta}")
        if self.operator != "pick-or-mix":
            parts.append(f"operator={self.operator}")
        if self.operator in ("pick-or-mix", "min"):
            parts.append(f"tau={self.tau:g}")
        parts.append(self.subsets if isinstance(self.subsets, str) else "fitted")
        if self.channel_dim != 1:
            parts.append(f"channel_dim={self.channel_dim}")
        return ", ".join(parts)


def _check_choices(operator: str, tau: float, constant: float | None, channel_dim: int) -> None:
    def refuse(what: str, where: str, to_do: str) -> InputError:
        return InputError(what, where=where, not_done="no layer was built", to_do=to_do)

    if operator not in OPERATORS:
        raise refuse(f"{operator!r} is no PiX operator.", "operator", f"choose one of {', '.join(OPERATORS)}")
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 <= tau <= 1:
        raise refuse(f"tau is {tau!r}, and p lies between 0 and 1.", "tau", "give a number from 0 to 1; the paper's is 0.5")
    if constant is not None and not 0 < constant < 1:
        raise refuse(f"p cannot be {constant!r} at first.", "constant", "give a number between 0 and 1, or None")
    if channel_dim not in (1, -1):
        raise refuse(f"channel_dim is {channel_dim!r}.", "channel_dim", "1 for [B, C, …], -1 for [B, …, C]")
