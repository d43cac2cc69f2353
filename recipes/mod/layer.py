"""The two layers of a Mixture-of-Depths block: one picks the channels that the block works on, the other puts them back.

A small network scores every channel from the image's average, the channels with the largest scores go through the block, and what comes out
is scaled by the scores and added to a few channels of the block's input; the others pass by untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.recipes.mod.options import FUSIONS, SELECTIONS
from chansurg.surgery.errors import InputError
from chansurg.surgery.kernels.moving import TAKE_CHANNELS, taken
from chansurg.surgery.layer import RecipeLayer

RATIO = 16
RANKED, UNRANKED = (3.0, 2.7), -1.0
"""Where a ranking is given, what goes into the sigmoid at first: from the first to the last of the ranked channels, and of the others."""


class ChannelSelector(RecipeLayer):
    """Scores all channels and hands on the most important ones (CNN MoD, Section 3.1).

    For ``x`` of shape ``[B, C, H, W]``::

        s = sigmoid(W2 relu(W1 (mean of x over H and W)))                               [B, C]
        selected = the k channels of x with the largest s, largest first                [B, k, H, W]

    ``W1`` maps ``C`` to ``max(1, C // 16)``, ``W2`` back to ``C``; neither has a bias. Of channels with one score the lowest comes first.
    The scores are computed in single precision at least: in half precision most of them would be equal.

    Args:
        in_channels: ``C``.
        out_channels: ``k``, from 1 to ``C``.
        select: ``topk`` as above. ``random``, the ablation, has no scores (they are all one) and no parameters: in training every image
            gets ``k`` channels drawn anew, in eval mode all images get the same ones, which were drawn when the layer was initialised.
        positions: say in the note which channels were selected, besides their scores.
        rectified: ``x`` comes out of a ReLU. ``W1`` then starts non-negative: where there are few hidden units behind a ReLU, all might be
            born dead, and every channel would be scored alike.
        channel_dim: 1 for ``[B, C, …]``, -1 for ``[B, …, C]``.
        ranking: the ``k`` channels that are selected at first, largest score first, for every image whose averages are about as usual;
            ``None`` leaves that to chance. One hidden unit then begins as what tells such an image, the others without effect.
        averages: the usual averages of the ``C`` channels over images, which go with a ``ranking``.

    Attributes:
        fc1: ``W1``, and ``fc2``: ``W2``; with ``topk`` only.
        fixed: buffer, the ``k`` channels of eval mode in ascending order; with ``random`` only.

    Raises:
        InputError: for arguments outside what is said above.
    """

    keeps_nonnegative = True
    fixed: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        select: str = "topk",
        positions: bool = False,
        rectified: bool = False,
        channel_dim: int = 1,
        ranking: Sequence[int] | None = None,
        averages: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= out_channels <= in_channels:
            raise _refuse(
                f"{out_channels} of {in_channels} channels cannot be selected.", "out_channels", "select from 1 up to all channels"
            )
        _check_choice("select", select, SELECTIONS)
        _check_channel_dim(channel_dim)
        _check_ranking(in_channels, out_channels, ranking, averages)
        self.ranking = None if ranking is None else list(ranking)
        self.averages = None if averages is None else list(averages)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.select = select
        self.positions = positions
        self.rectified = rectified
        self.channel_dim = channel_dim
        if select == "topk":
            self.fc1 = nn.Linear(in_channels, max(1, in_channels // RATIO), bias=False)
            self.fc2 = nn.Linear(self.fc1.out_features, in_channels, bias=False)
        else:
            self.register_buffer("fixed", torch.empty(out_channels, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw ``W1`` and ``W2`` anew as a linear layer's default is, or the channels of eval mode."""
        if self.select == "random":
            if not self.fixed.is_meta:
                self.fixed.copy_(torch.randperm(self.in_channels, generator=generator)[: self.out_channels].sort().values)
            return
        for layer in (self.fc1, self.fc2):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        with torch.no_grad():
            if self.rectified:
                self.fc1.weight.abs_()
            if self.ranking is not None and self.averages is not None:
                usual = torch.tensor(self.averages, dtype=torch.float64, device="cpu")
                self.fc1.weight[0] = usual / usual.square().sum()  # one, for an image that is as usual
                scores = torch.full((self.in_channels,), UNRANKED, device="cpu")
                scores[self.ranking] = torch.linspace(*RANKED, self.out_channels, device="cpu")
                self.fc2.weight.zero_()
                self.fc2.weight[:, 0] = scores

    def scores(self, x: Tensor) -> Tensor:
        """The importance ``s`` of every channel: ``[B, C, …] -> [B, C]``, in single precision at least; with ``topk`` only."""
        others = [dim for dim in range(1, x.ndim) if dim != self.channel_dim % x.ndim]
        precise = torch.promote_types(x.dtype, torch.float32)
        pooled = x.mean(others, dtype=precise) if others else x.to(precise)
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._scored(pooled)
        return self._scored(pooled)

    def _scored(self, pooled: Tensor) -> Tensor:
        hidden = torch.relu(functional.linear(pooled, self.fc1.weight.to(pooled.dtype)))
        return torch.sigmoid(functional.linear(hidden, self.fc2.weight.to(pooled.dtype)))

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The selected channels of every image, int64 ``[B, k]``, and their scores ``[B, k]``."""
        if self.select == "topk":
            scores = self.scores(x)
            chosen = _largest(scores, self.out_channels)
            return chosen, scores.gather(1, chosen)
        if self.training:
            drawn = torch.rand(x.shape[0], self.in_channels, device=x.device)
            chosen = drawn.argsort(dim=1)[:, : self.out_channels]
        else:
            chosen = self.fixed.expand(x.shape[0], -1)
        return chosen, torch.ones(chosen.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, …] -> [B, k, …]`` and the note for :class:`Fusion` (channels last with ``channel_dim=-1``).

        The note holds the selected channels' scores, ``[B, k]``; with ``positions`` their numbers too, ``[B, 2, k]``.
        """
        chosen, scores = self.choose(x)
        channel = self.channel_dim % x.ndim
        source = x if channel == 1 else x.movedim(channel, 1)
        selected = TAKE_CHANNELS(source, chosen) if TAKE_CHANNELS.serves(source) else taken(source, chosen)
        selected = selected if channel == 1 else selected.movedim(1, channel)
        # A number of a channel is exact in single precision, and would not be in half.
        return selected, torch.stack([scores, chosen.to(scores.dtype)], 1) if self.positions else scores

    def extra_repr(self) -> str:
        """The arguments, those at their defaults left out."""
        parts = [f"{self.in_channels} -> {self.out_channels}"]
        parts += [] if self.select == "topk" else [f"select={self.select}"]
        parts += [name for name in ("positions", "rectified") if getattr(self, name)]
        parts += [] if self.channel_dim == 1 else [f"channel_dim={self.channel_dim}"]
        return ", ".join(parts)


class Fusion(RecipeLayer):
    """Adds what a block made of the selected channels to its input (CNN MoD, Section 3.2, last paragraph, and Equations 1 and 2).

    For the block's input ``x`` ``[B, C, …]``, what it made of the selected channels ``processed`` ``[B, k, …]``, and their scores ``s``::

        y[:, :k] = x[:, :k] + s * processed
        y[:, k:] = x[:, k:]

    Args:
        fuse: ``first`` as above. The ablations: ``last`` adds to the last ``k`` channels, ``original`` to the selected channels themselves,
            which :class:`ChannelSelector` has to name in its note (``positions``).
        inplace: ``x`` is read by nobody afterwards. In eval mode, where no gradient is wanted, the sum is then written into it, so that
            what passes by is not copied.
        channel_dim: as the selector's.

    Raises:
        InputError: for arguments outside what is said above.
    """

    adds = True
    keeps_nonnegative = True

    def __init__(self, fuse: str = "first", *, inplace: bool = False, channel_dim: int = 1) -> None:
        super().__init__()
        _check_choice("fuse", fuse, FUSIONS)
        _check_channel_dim(channel_dim)
        self.fuse = fuse
        self.inplace = inplace
        self.channel_dim = channel_dim

    def forward(self, x: Tensor, processed: Tensor, note: Tensor) -> Tensor:
        """``[B, C, …], [B, k, …], [B, k] or [B, 2, k] -> [B, C, …]``; dtype and memory format are those of ``x``."""
        channel = self.channel_dim % x.ndim
        scores = note[:, 0] if self.fuse == "original" else note
        processed = processed.to(x.dtype)
        scores = _spread(scores.to(x.dtype), channel, x.ndim)
        in_place = self.inplace and not (self.training or torch.is_grad_enabled() or x.requires_grad)
        if self.fuse == "original":
            index = _spread(note[:, 1].long(), channel, x.ndim).expand_as(processed)
            scaled = processed * scores
            return (x if in_place else x.clone()).scatter_add_(channel, index, scaled)
        width, all_channels = processed.shape[channel], x.shape[channel]
        begin = 0 if self.fuse == "first" else all_channels - width
        part = x.narrow(channel, begin, width)
        if in_place:
            part.addcmul_(processed, scores)
            return x
        passing = x.narrow(channel, width if self.fuse == "first" else 0, all_channels - width)
        fused = torch.addcmul(part, processed, scores)
        return torch.cat([fused, passing] if self.fuse == "first" else [passing, fused], channel)

    def extra_repr(self) -> str:
        """The arguments, those at their defaults left out."""
        parts = [self.fuse]
        parts += ["inplace"] if self.inplace else []
        parts += [] if self.channel_dim == 1 else [f"channel_dim={self.channel_dim}"]
        return ", ".join(parts)


def _largest(scores: Tensor, k: int) -> Tensor:
    """The numbers of the ``k`` largest scores of each row, largest first, the lowest of equals first: ``[B, C] -> [B, k]``.

    Runtimes order equal numbers as they like, and not all of them have a stable sort. So in double precision each score is made smaller by
    its number's share of less than half the distance to the next score in single precision, after which no two are equal. The least number
    added first sets scores apart that underflowed to zero.
    """
    if scores.dtype == torch.float64 or scores.device.type == "mps":
        return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]
    shares = 1 - torch.arange(scores.shape[1], dtype=torch.float64, device=scores.device) * 2.0**-41
    return torch.topk((scores.double() + 2.0**-180) * shares, k, dim=1).indices


def _spread(values: Tensor, channel: int, ndim: int) -> Tensor:
    """``[B, k]`` with a dimension of one for each that is neither the batch nor ``channel``."""
    for dim in range(1, ndim):
        values = values if dim == channel else values.unsqueeze(dim)
    return values


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _refuse(f"{value!r} is no value of {name}.", name, f"choose one of {', '.join(choices)}")


def _check_ranking(in_channels: int, out_channels: int, ranking: Sequence[int] | None, averages: Sequence[float] | None) -> None:
    if ranking is None and averages is None:
        return
    named = ranking is not None and len(set(ranking)) == len(ranking) == out_channels and all(0 <= i < in_channels for i in ranking)
    if not named or averages is None or len(averages) != in_channels or not any(averages):
        raise _refuse(
            f"the ranking is not {out_channels} of {in_channels} channels with the averages of them all.",
            "ranking",
            "name each channel once, with an average for every channel of the input",
        )


def _check_channel_dim(channel_dim: int) -> None:
    if channel_dim not in (1, -1):
        raise _refuse(f"channel_dim is {channel_dim!r}.", "channel_dim", "1 for [B, C, …], -1 for [B, …, C]")


def _refuse(what: str, where: str, to_do: str) -> InputError:
    return InputError(what, where=where, not_done="no layer was built", to_do=to_do)
