"""MoD's options. No torch is imported here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from chansurg.surgery.recipe import bad_value, option

SELECTIONS = ("topk", "random")
FUSIONS = ("first", "last", "original")
GROWTHS = ("copied", "identity")
LARGEST = 2**16  # no layer has more channels, and no stage more blocks

_bad = partial(bad_value, "mod")


@dataclass(frozen=True)
class ModOptions:
    """What a user can choose. Source: CNN MoD, Sections 3 and 4."""

    c: int | Literal["first"] = option(
        "first",
        "A block of C channels works on C // c of them, on 1 at least. 'first' is the input channels of the network's first block, as the "
        "paper advises: 64 for a ResNet, 16 for a MobileNetV2.",
        metavar="first|N",
    )
    blocks: str = option(
        "alternate",
        "Which blocks of a stage: alternate is every second one, all is every one but the first, 2,4,… are the ones meant, counted from 1. "
        "The first block of a stage stays as it is.",
        metavar="alternate|all|N,N,…",
    )
    stages: str = option("all", "Which stages, counted from 1.", metavar="all|N,N,…")
    select: str = option(
        "topk",
        "topk: the channels with the highest scores. random: no scores; channels drawn anew for every image in training, always the same "
        "ones in eval mode.",
        choices=SELECTIONS,
    )
    fuse: str = option(
        "first",
        "Where a block's result is added: to the first channels of its input, to the last ones, or to those that it was computed from.",
        choices=FUSIONS,
    )
    depths: str | None = option(
        None,
        "How many blocks each stage is to have, none fewer than now: 3,4,18,3 makes a ResNet-50 a ResNet86-MoD. Left out, as many as now.",
        metavar="N,N,…",
    )
    grow: str = option(
        "copied",
        "What added blocks start as: a copy of their stage's last block, or (identity) one that passes its input through unchanged.",
        metavar="|".join(GROWTHS),
    )

    def __post_init__(self) -> None:
        """Check the values; strings from a command line become numbers."""
        for name, choices in (("select", SELECTIONS), ("fuse", FUSIONS), ("grow", GROWTHS)):
            if getattr(self, name) not in choices:
                raise _bad(name, getattr(self, name), f"Choose one of: {', '.join(choices)}.")
        if self.c != "first":
            (c,) = self._numbers("c", f"Pass a whole number from 1 to {LARGEST}, or 'first'.", lambda count: count == 1)
            object.__setattr__(self, "c", c)
        if self.blocks not in ("alternate", "all"):
            numbers = self._numbers("blocks", "Pass 'alternate', 'all', or blocks counted from 1 such as 2,4.")
            if 1 in numbers:
                raise _bad(
                    "blocks", self.blocks, "The first block of a stage changes the width or resolution and stays as it is: leave 1 out."
                )
            object.__setattr__(self, "blocks", _text(sorted(set(numbers))))
        if self.stages != "all":
            numbers = self._numbers("stages", "Pass 'all', or stages counted from 1 such as 2,3.")
            object.__setattr__(self, "stages", _text(sorted(set(numbers))))
        if self.depths is not None:
            numbers = self._numbers("depths", "Pass the number of blocks of every stage, such as 3,4,18,3.")
            object.__setattr__(self, "depths", _text(numbers))
        elif self.grow != "copied":
            raise _bad("grow", self.grow, "Nothing grows without --depths: name the depths, or leave --grow out.")

    def takes_block(self, number: int) -> bool:
        """Whether the block of this number, counted from 1 in its stage, is to be made narrow."""
        if self.blocks in ("alternate", "all"):
            return number > 1 and (self.blocks == "all" or number % 2 == 0)
        return number in numbers_in(self.blocks)

    def takes_stage(self, number: int) -> bool:
        """Whether the stage of this number, counted from 1, is to be changed."""
        return self.stages == "all" or number in numbers_in(self.stages)

    def _numbers(self, name: str, to_do: str, fits: Callable[[int], bool] = bool) -> tuple[int, ...]:
        """The whole numbers of an option, from a text or a sequence; ``fits`` is asked of how many there are."""
        value = getattr(self, name)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (tuple, list)) else (value,)
        try:
            numbers = tuple(part if isinstance(part, int) else int(str(part)) for part in parts)
        except ValueError:
            raise _bad(name, value, to_do) from None
        if not fits(len(numbers)) or any(isinstance(n, bool) or not 1 <= n <= LARGEST for n in numbers):
            raise _bad(name, value, to_do)
        return numbers


def numbers_in(text: str) -> tuple[int, ...]:
    """The numbers of ``blocks``, ``stages`` or ``depths`` as :class:`ModOptions` keeps them, ``2,4``."""
    return tuple(int(part) for part in text.split(","))


def _text(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
