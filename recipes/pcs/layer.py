"""The salience gate: a small network looks at what goes into a layer, and scales each channel that comes out of it.

Training lowers the salience of the least salient channels until a hard sigmoid makes it exactly zero. A channel whose salience is zero for
every image of a pass over the data is dead: the mask drops it, and slicing can take it out without changing the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.recipes.pcs.schedule import NOT_WATCHING, is_closing, shrinking_rate, watched_pass
from chansurg.surgery.editing import narrowing
from chansurg.surgery.gating import Gate
from chansurg.surgery.layer import Moment
from chansurg.surgery.pooling import mean_over

START = 0.5
"""The salience of every entry when the generator's last layer is zero; :mod:`chansurg.recipes.pcs.planning` makes up for it by two."""
RATIO = 4
BATCH = 256
"""The batch size that the paper's shrinking rates are meant for."""
_AVERAGES = ("running_salience", "importance", "sensitivity")
_ALL_BUT_SHUT = 1e-2
_MARGIN = 0.1
"""How far below its lower end the hard sigmoid's input is put, for the image that opened an entry that is all but shut the widest."""
_SLOPE = 1 / 6
"""Of the hard sigmoid."""
_MEMORY = 0.99
"""How much of the sensitivity each backward pass leaves."""


class SalienceGate(Gate):
    """A salience for every entry, computed from the gated layer's input (PCS, Figure 2 and Equation 2).

    For features ``x`` ``[B, C, …]`` and the gated layer's input ``source`` ``[B, C_in, …]``::

        s = hard_sigmoid(fc2(relu(fc1(mean of source over everything but batch and channels))))      [B, entries]
        y_c = s_(c // unit) * m_(c // unit) * x_c                                                    [B, C, …]

    ``fc1`` maps ``C_in`` to ``max(1, C_in // 4)``. ``fc2`` starts at zero, so ``s`` is exactly one half at first.

    While training, the gate keeps the salience of the batch that it has just seen. :meth:`training_loss` is the shrinking loss (Equation
    3) of that batch, and :meth:`step_taken` moves the running salience (Equation 6) and watches which entries are dead; see
    :mod:`chansurg.recipes.pcs.schedule` for when. At most :attr:`shrinkable` entries are ever masked.

    Args:
        in_channels: ``C_in``.
        entries: removable units; ``C = entries * unit``.
        unit: neighbouring channels that share one salience: a group of a grouped convolution, say.
        channel_dim: 1 for ``[B, C, …]``, -1 for ``[B, …, C]``, of features and source both.
        shrink: the share of the entries that may go, a fraction as a text: ``K = floor(shrink * entries)``.
        lambda_base: the shrinking rate at the end of the shrinking part.
        alpha: the weight of the newest step in the running salience.
        selection: ``running`` shrinks the ``K`` entries that :meth:`ranking` puts first; ``input`` each image's ``K`` lowest.
        method: ``shrinking`` pays the shrinking loss; ``truncation`` sets the selected entries to zero from the first step on, and once
            dead entries are watched for, what is selected stays selected.
        closing: the last share of a run, in which the mask is applied and nothing shrinks.
        importance: of each entry, larger is kept longer; it decides among equals. ``None`` is all alike.

    Attributes:
        alive: buffer, bool ``[entries]``: salience above zero for some image of the pass being watched.
        watched: buffer, whole number: the pass being watched, -1 for none.
        truncated: buffer, bool ``[entries]``, with ``truncation`` only: what truncation may set to zero; false until training begins.
    """

    no_weight_decay = frozenset(("fc1.weight", "fc2.weight"))
    keeps_nonnegative = True
    alive: Tensor
    watched: Tensor
    truncated: Tensor
    _batch: Tensor | None  # [B, entries]
    _seen: Tensor | None  # [4, entries]: summed salience, images whose salience is not zero, images, highest salience; since the last step
    _watching: int | None  # what the buffer `watched` holds, where that is known without asking the device

    def __init__(
        self,
        in_channels: int,
        entries: int,
        *,
        unit: int = 1,
        channel_dim: int = 1,
        shrink: str = "1/2",
        lambda_base: float = 6e-6,
        alpha: float = 0.1,
        selection: str = "running",
        method: str = "shrinking",
        closing: float = 0.25,
        importance: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.channel_dim = channel_dim
        self.shrink = shrink
        self.lambda_base = lambda_base
        self.alpha = alpha
        self.selection = selection
        self.method = method
        self.closing = closing
        self._importance = [1.0] * entries if importance is None else list(importance)
        hidden = max(1, in_channels // RATIO)
        self.fc1 = nn.Linear(in_channels, hidden)
        self.fc2 = nn.Linear(hidden, entries)
        self.register_buffer("mask", torch.empty(entries, dtype=torch.bool))
        self.register_buffer("running_salience", torch.empty(entries))
        self.register_buffer("importance", torch.empty(entries))
        self.register_buffer("sensitivity", torch.empty(entries))
        self.register_buffer("alive", torch.empty(entries, dtype=torch.bool))
        self.register_buffer("watched", torch.empty((), dtype=torch.int64))
        if method == "truncation":
            self.register_buffer("truncated", torch.empty(entries, dtype=torch.bool))
        self._forget()
        self.reset_parameters()

    @property
    def in_channels(self) -> int:
        """``C_in``."""
        return self.fc1.in_features

    @property
    def out_channels(self) -> int:
        """``C``."""
        return self.fc2.out_features * self.unit

    @property
    def shrinkable(self) -> int:
        """``K``: how many entries may go."""
        return int(Fraction(self.shrink) * self.entries)

    @property
    def shrinks_until(self) -> float:
        """Where the closing part begins."""
        return 1 - self.closing

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw ``fc1`` anew as a linear layer's default is, zero ``fc2``, and forget all that was observed.

        One hidden unit starts with non-negative numbers: where there are few units behind a ReLU, all might be born dead.
        """
        bound = self.in_channels**-0.5
        nn.init.uniform_(self.fc1.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.fc1.bias, -bound, bound, generator=generator)
        with torch.no_grad():
            self.fc1.weight[0].abs_()
            self.fc1.bias[0].abs_()
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)
        self.mask.fill_(True)
        self.running_salience.fill_(START)
        self.importance.copy_(torch.tensor(self._importance))
        self.sensitivity.fill_(0.0)
        self.alive.fill_(False)
        self.watched.fill_(NOT_WATCHING)
        if self.method == "truncation":
            self.truncated.fill_(False)

    def salience(self, source: Tensor) -> Tensor:
        """``s``, neither masked nor truncated: ``[B, C_in, …] -> [B, entries]``."""
        others = [dim for dim in range(1, source.ndim) if dim != self.channel_dim % source.ndim]
        pooled = mean_over(source, others)
        return functional.hardsigmoid(self.fc2(torch.relu(self.fc1(pooled))))

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        """``[B, C, …], [B, C_in, …] -> [B, C, …]`` (channels last in both with ``channel_dim=-1``); dtype and layout of the features."""
        generated = self.salience(source)
        salience = self._let_through(generated)
        if self.training:
            self._keep(generated, salience)
            if self.is_sensed:
                salience = self._felt(salience)
        by_channel = salience.to(features.dtype)
        if self.unit > 1:
            by_channel = by_channel.unsqueeze(-1).expand(-1, -1, self.unit).flatten(1)
        channel = self.channel_dim % features.ndim
        for dim in range(1, features.ndim):
            by_channel = by_channel if dim == channel else by_channel.unsqueeze(dim)
        return features * by_channel

    def _let_through(self, generated: Tensor) -> Tensor:
        """The salience after mask and truncation: ``[B, entries]``."""
        passing = self.mask
        if self.method == "truncation" and self.selection == "running":
            passing = passing & ~self.truncated
        salience = generated * passing.to(generated.dtype)
        if self.method == "truncation" and self.selection == "input" and self._selected:
            lowest = self._lowest(generated.detach())
            cut = torch.zeros_like(salience, dtype=torch.bool).scatter(1, lowest, True) & self.truncated
            salience = salience.masked_fill(cut, 0)
        return salience

    @property
    def _selected(self) -> int:
        """How many entries are selected now."""
        return self.shrinkable if self.released is None else min(self.shrinkable, int(self.released.sum()))

    def _lowest(self, generated: Tensor) -> Tensor:
        """The selected entries of each image; the less important ones among equals: ``[B, entries] -> [B, K]``."""
        by_importance = torch.argsort(self.importance, stable=True)
        return by_importance[torch.argsort(generated[:, by_importance], dim=1, stable=True)[:, : self._selected]]

    def _keep(self, generated: Tensor, salience: Tensor) -> None:
        """Keep the batch's salience with its graph for the loss, and what a step needs of all batches since the last one."""
        self._batch = salience
        with torch.no_grad():
            raw = (generated * self.mask.to(generated.dtype)).to(self.running_salience.dtype)
            images = torch.full_like(raw[0], raw.shape[0])
            seen = torch.stack([raw.sum(0), (salience != 0).sum(0).to(raw.dtype), images, raw.amax(0)])
            if self._seen is not None:
                seen = torch.cat([self._seen[:3] + seen[:3], torch.maximum(self._seen[3:], seen[3:])])
            self._seen = seen

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _felt(self, salience: Tensor) -> Tensor:
        """The same numbers; the gradient that the features send back to them is noted, and the shrinking loss's is not."""
        if not salience.requires_grad:
            return salience
        felt = salience.view_as(salience)
        numbers = salience.detach()
        felt.register_hook(lambda gradient: self._note(gradient.detach() * numbers))  # type: ignore[no-untyped-call]
        return felt

    def _note(self, change: Tensor) -> None:
        """Take one backward pass into the sensitivity. ``change`` is ``s dL/ds`` ``[B, entries]``, of a loss that is a mean over ``B``."""
        squared = (change.to(self.sensitivity.dtype) * change.shape[0]).square().mean(0)
        self.sensitivity.mul_(_MEMORY).add_(squared, alpha=1 - _MEMORY)

    def _forget(self) -> None:
        self._batch = self._seen = self._watching = None

    def training_loss(self, moment: Moment) -> Tensor | None:
        """The shrinking loss of the batch just seen: the selected saliences (Equation 3) summed over it, as if it held 256 images.

        ``None`` with ``truncation``, in the closing part, where nothing may shrink, and where no batch was seen in train mode.
        """
        rate = shrinking_rate(self.lambda_base, self.closing, moment.progress, moment.steps)
        if moment.pressure is not None and not is_closing(self.closing, moment.progress):
            rate = moment.pressure
        if self._batch is None or self.method == "truncation" or not self._selected or not rate:
            return None
        salience = self._batch if self._batch.dtype == torch.float64 else self._batch.float()
        if self.selection == "running":
            shrinking = salience[:, self.ranking()[: self._selected]]
        else:
            shrinking = salience.gather(1, self._lowest(salience.detach()))
        return shrinking.sum() * (rate * BATCH / salience.shape[0])

    @torch.no_grad()
    def step_taken(self, moment: Moment) -> None:
        """Move the running salience by the step's images, select what truncation cuts, and watch for dead entries."""
        running = self.running_salience
        nothing = torch.zeros(4, self.entries, dtype=running.dtype, device=running.device)
        if self.is_sensed:
            self.sensitivity.copy_(moment.mean(self.sensitivity))
        raw, above, images, highest = moment.mean(nothing if self._seen is None else self._seen)
        self._batch = self._seen = None
        mean = torch.where(images > 0, raw / images.clamp(min=torch.finfo(images.dtype).tiny), running)
        running.copy_((1 - self.alpha) * running + self.alpha * mean)
        if self.method == "shrinking" and self.selection == "running":
            self._shut(highest)
        watched = watched_pass(self.closing, moment.progress, moment.epoch)
        self._watch((above > 0) | (images == 0), watched, is_closing(self.closing, moment.progress))

    def _shut(self, highest: Tensor) -> None:
        """Lower the bias of those selected entries that are zero for nearly all images and were not for one of the step's.

        A hard sigmoid has no gradient below its lower end, so an entry comes to rest just there, and features that go on changing open it
        again for an image here and there: in a run on ResNet-20 half of what was shut on average was never zero for a whole pass. This
        gives it a margin.

        Args:
            highest: the step's highest salience of each entry, ``[entries]``; over several processes the mean of theirs.
        """
        selected = self.ranking()[: self._selected]
        highest = highest[selected]
        opened = (highest > 0) & (self.running_salience[selected] < _ALL_BUT_SHUT)
        lower = torch.where(opened, highest / _SLOPE + _MARGIN, 0.0)
        self.fc2.bias.index_add_(0, selected, lower.to(self.fc2.bias.dtype), alpha=-1)

    def _watch(self, alive: Tensor, now: int, is_closing: bool) -> None:
        """Take in what one step saw alive, ``[entries]``, while pass ``now`` is watched.

        The step in which a pass ends counts for it and for the next one, so that each has all of its batches whether progress is taken
        before a step or after it.
        """
        before = int(self.watched) if self._watching is None else self._watching
        self._watching = now
        if before == NOT_WATCHING and not is_closing and self.method == "truncation":
            self._truncate()
            alive = alive & ~self.truncated
        if before != NOT_WATCHING and (now >= before or (now == NOT_WATCHING and is_closing)):
            self.alive.logical_or_(alive)
            if now == before:
                return
            self._let_go()
        if now != before:
            self.watched.fill_(now)
            self.alive.copy_(alive)

    def _truncate(self) -> None:
        """Select what truncation may set to zero in the next step: any entry where each image has its own lowest."""
        if self.selection == "input":
            self.truncated.fill_(True)
        else:
            self.truncated.fill_(False).index_fill_(0, self.ranking()[: self._selected], True)

    def _let_go(self) -> None:
        """Mask what the whole pass saw dead, in the order of the ranking, as far as entries may go."""
        order = self.ranking()
        dead = (self.mask & ~self.alive)[order]
        room = self.shrinkable - (~self.mask).sum()
        self.mask.logical_and_(~torch.zeros_like(dead).scatter(0, order, dead & (dead.cumsum(0) <= room)))

    def reason_against_narrowing(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> str | None:
        """As of a linear layer; and of the output only whole units go, in the order of their channels."""
        units = None
        if out_channels is not None:
            units = self._units(out_channels)
            if [unit * self.unit + i for unit in units for i in range(self.unit)] != list(out_channels):
                return f"{self.unit} neighbouring channels share one salience, and only some of them were named"
        return narrowing.reason_against(self.fc1, in_channels, None) or narrowing.reason_against(self.fc2, None, units)

    def narrow(self, in_channels: Sequence[int] | None, out_channels: Sequence[int] | None) -> None:
        """Keep these input channels of the generator and these units of its output, with all that is known of them."""
        if in_channels is not None:
            narrowing.narrow(self.fc1, "fc1", in_channels, None)
        if out_channels is None:
            return
        units = self._units(out_channels)
        narrowing.narrow(self.fc2, "fc2", None, units)
        self._importance = [self._importance[unit] for unit in units]
        for name, tensor in list(self._buffers.items()):
            if tensor is not None and tensor.ndim:
                setattr(self, name, tensor[torch.tensor(units, dtype=torch.long, device=tensor.device)])
        self._forget()

    def _units(self, channels: Sequence[int]) -> list[int]:
        return [channel // self.unit for channel in channels[:: self.unit]]

    def extra_repr(self) -> str:
        """What it maps, and the arguments that are not at their defaults."""
        parts = [f"{self.in_channels} -> {self.out_channels}"]
        if self.unit != 1:
            parts.append(f"unit={self.unit}")
        if self.channel_dim != 1:
            parts.append(f"channel_dim={self.channel_dim}")
        parts.append(f"shrink={self.shrink}")
        return ", ".join([*parts, *(text for text in (self.selection, self.method) if text not in ("running", "shrinking"))])

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: everything but the batch just seen."""
        return {**self.__dict__, "_batch": None, "_seen": None, "_watching": None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, but averages stay what they are where the network becomes half precision: a step would be lost in rounding."""
        before = {name: self._buffers[name] for name in _AVERAGES}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in before.items():
            after = self._buffers[name]
            if tensor is not None and after is not None and after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = tensor.to(after.device)
        self._forget()
        return self
