"""SlimConv: a spatial convolution on folded channels, twice, with a small attention deciding how much of each channel goes into a fold.

A convolution that maps ``C_in`` to ``C_out`` channels gives way to a *top* path on ``C_in / m`` folded channels, and a *bottom* path on
half of them, folded under another order of the same weights. Their results are joined: ``3 C_out / (2m)`` channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from chansurg.recipes.slimconv.folding import FOLD_CHANNELS, fold
from chansurg.recipes.slimconv.options import PATHS, RATIO, WEIGHTS
from chansurg.surgery.errors import InputError
from chansurg.surgery.layer import RecipeLayer, Target
from chansurg.surgery.pooling import mean_over

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class SlimConv(RecipeLayer):
    """The slim convolution (SlimConv, Section III-A, Figure 2).

    For ``x`` ``[B, C_in, H, W]``, ``m`` folds, and a convolution ``C_in -> C_out`` whose place it takes::

        w      = sigmoid(excite(relu(norm(squeeze(mean_hw(x))))))    [B, C_in]              (Eq. 1)
        top    = conv(fold_m(w * x))                                 [B, C_out / m, H', W']  (Eq. 2)
        bottom = conv(relu(norm(reduce(fold_m(flip(w) * x)))))       [B, C_out / (2m), H', W']
        y      = concatenation of top, bottom (and third)

    ``fold_m`` cuts the channels into ``m`` runs and adds them up; ``flip`` reverses their order. ``squeeze`` maps ``C_in`` to
    ``max(C_in // 32, floor)``, without bias; ``reduce`` is ``1x1``, ``C_in / m -> C_in / (2m)``. Halves are rounded down. The norm behind
    each path's convolution is the one norm that follows the layer: batch norm works channel by channel.

    Args:
        in_channels: ``C_in``, a multiple of ``folds`` and at least twice that.
        conv_channels: ``C_out``, likewise.
        kernel_size: of the convolution replaced, as are the following.
        stride: see there.
        padding: numbers, or ``valid`` or ``same``.
        dilation: see there.
        groups: each path has as many where they divide its channels, else the largest number that divides all three; a depthwise
            convolution stays depthwise.
        bias: whether the convolutions of the paths have one.
        padding_mode: see there.
        folds: ``m``, at least 2.
        floor: least width of the attention.
        weights: which order of ``w`` the paths take. ``both``: top as it is, bottom reversed. The ablations: ``plain``, both as it is;
            ``flipped``, both reversed; ``shuffled``, the bottom path interleaved (channel ``i`` of the ``m`` runs after one another, as in
            a channel shuffle).
        paths: 3 adds a path like the bottom one, on interleaved weights (Table XI).
        attention: what ``w`` is at first, for every image: one number between 0 and 1 for each input channel; ``None`` draws it.
        selections: for the bottom and third path, which folded channels ``reduce`` hands on at first; ``None`` initialises it at random.

    Raises:
        InputError: for arguments outside what is said above.
    """

    is_spatial = True

    def __init__(
        self,
        in_channels: int,
        conv_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        folds: int = 2,
        floor: int = 1,
        weights: str = "both",
        paths: int = 2,
        selections: Sequence[Sequence[int]] | None = None,
        attention: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check(in_channels, conv_channels, groups, folds, floor, weights, paths, selections, attention)
        self.in_channels = in_channels
        self.conv_channels = conv_channels
        self.folds = folds
        self.weights = weights
        self.selections = None if selections is None else [list(selection) for selection in selections]
        self.attention = None if attention is None else list(attention)

        def conv(part: Part) -> nn.Conv2d:
            """The replaced convolution with fewer channels."""
            return nn.Conv2d(
                part.inputs,
                part.outputs,
                _pair(kernel_size),
                stride=_pair(stride),
                padding=padding if isinstance(padding, str) else _pair(padding),
                dilation=_pair(dilation),
                groups=part.groups,
                bias=bias,
                padding_mode=padding_mode,
            )

        top, *others = parts(in_channels, conv_channels, groups, folds, paths)
        hidden = max(in_channels // RATIO, floor)
        self.squeeze = VectorConv(in_channels, hidden, 1, bias=False)
        self.norm = VectorNorm(hidden)
        self.excite = VectorConv(hidden, in_channels, 1)
        self.top = conv(top)
        self.bottom = ReducedPath(in_channels // folds, conv(others[0]))
        self.third = ReducedPath(in_channels // folds, conv(others[1])) if paths == 3 else None
        self.reset_parameters()

    @property
    def out_channels(self) -> int:
        """Channels that the layer puts out."""
        return self.top.out_channels + sum(path.conv.out_channels for path in self._reduced())

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every convolution anew (He normal, from ``generator`` if given), and reset the norms.

        ``reduce`` starts as its selection, and the attention as the numbers it was given: whatever it is shown, until it learns.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for path, selection in zip(self._reduced(), self.selections or (), strict=False):
            path.select(selection)
        if self.attention is not None:
            nn.init.zeros_(self.excite.weight)
            assert self.excite.bias is not None
            with torch.no_grad():
                self.excite.bias.copy_(torch.tensor(self.attention, dtype=torch.float64, device="cpu").logit())

    def channel_weights(self, x: Tensor) -> Tensor:
        """``w``: ``[B, C_in, H, W] -> [B, C_in, 1, 1]`` (Eq. 1)."""
        z = mean_over(x, (2, 3), keepdim=True)
        return torch.sigmoid(self.excite(functional.relu(self.norm(self.squeeze(z))))).to(x.dtype)

    def for_runtime(self, target: Target) -> nn.Module:
        """See :mod:`chansurg.recipes.slimconv.forms`."""
        from chansurg.recipes.slimconv.forms import form_for

        return form_for(self, target)

    def norms_inside(self) -> list[tuple[str, str]]:
        """The attention's norm, and that of every path but the top one."""
        return [("squeeze", "norm"), *((f"{name}.reduce", f"{name}.norm") for name in self._reduced_names())]

    def last_layers(self) -> list[str]:
        """The convolutions of the paths, in the order in which they are joined."""
        return ["top", *(f"{name}.conv" for name in self._reduced_names())]

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W] -> [B, out_channels, H', W']``; dtype and memory format are kept."""
        return joined(x, self.folds, self.orders(self.channel_weights(x)), self.path_modules())

    def orders(self, w: Tensor) -> list[Tensor]:
        """The weights as each path takes them, top first; ``w`` and what comes out have the channels along dimension 1."""
        top = bottom = w.flip(1) if self.weights == "flipped" else w
        if self.weights in ("both", "shuffled"):
            bottom = w.flip(1) if self.weights == "both" else self._interleaved(w)
        return [top, bottom] if self.third is None else [top, bottom, self._interleaved(w)]

    def _interleaved(self, w: Tensor) -> Tensor:
        """The weights with the ``m`` runs dealt out in turn."""
        return torch.unflatten(w, 1, (self.folds, -1)).transpose(1, 2).flatten(1, 2)

    def _reduced_names(self) -> list[str]:
        return ["bottom"] if self.third is None else ["bottom", "third"]

    def path_modules(self) -> list[nn.Module]:
        """The modules that work on the folds, top first."""
        return [self.top, *self._reduced()]

    def _reduced(self) -> list[ReducedPath]:
        return [path for path in (self.bottom, self.third) if path is not None]

    def extra_repr(self) -> str:
        """What the layer does as a whole; its convolutions say the rest."""
        parts = [f"{self.in_channels} -> {self.out_channels}, folds={self.folds}"]
        return ", ".join([*parts, *([] if self.weights == "both" else [f"weights={self.weights}"])])


def joined(x: Tensor, folds: int, weights: Sequence[Tensor], paths: Sequence[nn.Module]) -> Tensor:
    """What the paths make of their folds, one after another along the channels: ``[B, C_in, H, W] -> [B, out_channels, H', W']``.

    Args:
        x: the layer's input.
        folds: ``m``.
        weights: ``[B, C_in, 1, 1]`` for each path; neighbours with one and the same share a fold.
        paths: the modules.
    """
    distinct: list[Tensor] = []
    places: list[int] = []
    for number, w in enumerate(weights):
        if number == 0 or w is not weights[number - 1]:
            distinct.append(w)
        places.append(len(distinct) - 1)
    if FOLD_CHANNELS.serves(x):
        folded = list(FOLD_CHANNELS(x, torch.stack([w.flatten(1) for w in distinct], 1), folds).unbind(0))
    else:
        folded = [fold(w, x, folds) for w in distinct]
    return torch.cat([path(folded[place]) for place, path in zip(places, paths, strict=True)], 1)


class ReducedPath(nn.Module):
    """The bottom path, and the third: ``conv(relu(norm(reduce(x))))`` on folded channels ``[B, C_in / m, H, W]``.

    Args:
        in_channels: ``C_in / m``.
        conv: what comes last; ``reduce`` leaves it its input channels.
    """

    def __init__(self, in_channels: int, conv: nn.Conv2d) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, conv.in_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(conv.in_channels)
        self.conv = conv

    def select(self, channels: Sequence[int]) -> None:
        """Make ``reduce`` hand on just these channels, in this order."""
        with torch.no_grad():
            self.reduce.weight.zero_()
            for row, channel in enumerate(channels):
                self.reduce.weight[row, channel] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in / m, H, W] -> [B, conv.out_channels, H', W']``."""
        y: Tensor = self.conv(functional.relu(self.norm(self.reduce(x)), inplace=True))
        return y


class VectorConv(nn.Conv2d):
    """A ``1x1`` convolution of pooled vectors: as a matrix product, since convolutions of a single pixel are slow in many libraries."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C_in, 1, 1] -> [B, C_out, 1, 1]``."""
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class VectorNorm(nn.BatchNorm2d):
    """Batch norm of pooled vectors ``[B, C, 1, 1]``. A batch of a single image has no variance: there the running statistics serve."""

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, 1, 1] -> [B, C, 1, 1]``."""
        if self.training and input.shape[0] == 1:
            return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class Part(NamedTuple):
    """The convolution of one path: its input and output channels, and groups."""

    inputs: int
    outputs: int
    groups: int


def parts(in_channels: int, conv_channels: int, groups: int, folds: int, paths: int) -> list[Part]:
    """The convolutions of the paths, top first: ``m`` divides the channels, and what it leaves is halved for the others, rounded down.

    Args:
        in_channels: of the convolution replaced, as are the next two.
        conv_channels: its output channels.
        groups: a depthwise convolution's are its input channels.
        folds: ``m``.
        paths: how many.
    """
    found = []
    for divisor in (folds, *[2 * folds] * (paths - 1)):
        inputs = in_channels // divisor
        if groups == in_channels:
            found.append(Part(inputs, inputs * (conv_channels // in_channels), inputs))
        else:
            outputs = conv_channels // divisor
            found.append(Part(inputs, outputs, math.gcd(groups, inputs, outputs)))
    return found


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _check(
    in_channels: int,
    conv_channels: int,
    groups: int,
    folds: int,
    floor: int,
    weights: str,
    paths: int,
    selections: Sequence[Sequence[int]] | None,
    attention: Sequence[float] | None,
) -> None:
    def refuse(what: str, where: str, to_do: str) -> InputError:
        return InputError(what, where=where, not_done="no layer was built", to_do=to_do)

    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 2:
        raise refuse(f"folds is {folds!r}.", "folds", "give a whole number of at least 2; the paper's default is 2")
    for name, channels in (("in_channels", in_channels), ("conv_channels", conv_channels)):
        if not isinstance(channels, int) or channels < 2 * folds or channels % folds:
            raise refuse(f"{name} is {channels!r}, no multiple of {folds} of at least {2 * folds}.", name, "give a multiple of the folds")
    if groups < 1 or in_channels % groups or conv_channels % groups:
        raise refuse(f"{groups!r} groups do not divide {in_channels} and {conv_channels} channels.", "groups", "give a common divisor")
    if not isinstance(floor, int) or floor < 1:
        raise refuse(f"floor is {floor!r}.", "floor", "give a whole number of at least 1")
    if weights not in WEIGHTS:
        raise refuse(f"{weights!r} is no choice of weights.", "weights", f"choose one of {', '.join(WEIGHTS)}")
    if paths not in PATHS:
        raise refuse(f"paths is {paths!r}.", "paths", "give 2 or 3")
    if selections is not None:
        size, reduced = in_channels // folds, in_channels // (2 * folds)
        fits = len(selections) == paths - 1 and all(len(s) == reduced and all(0 <= i < size for i in s) for s in selections)
        if not fits:
            raise refuse(
                f"the selections are not {reduced} of {size} folded channels for each path but the top one.", "selections", "give such"
            )
    if attention is not None and not (len(attention) == in_channels and all(0 < weight < 1 for weight in attention)):
        raise refuse(
            f"the attention is not one number between 0 and 1 for each of {in_channels} input channels.", "attention", "give such, or None"
        )
