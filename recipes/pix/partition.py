"""How PiX divides the channels of an activation into subsets, one subset an output channel. Plain integers, no torch.

Any fixed partition is the same method (channel order carries no meaning in a pretrained network); what differs is how it reads in memory,
and, where a trained network is converted, how much of it survives (:mod:`chansurg.recipes.pix.fitting`).
"""

from __future__ import annotations

from collections.abc import Sequence

from chansurg.surgery.errors import InputError

SUBSETS = ("contiguous", "strided")
FITTED = "fitted"
Subsets = str | Sequence[Sequence[int]]


def partition(in_channels: int, out_channels: int, zeta: int | None, subsets: Subsets) -> list[list[int]]:
    """The input channels of each output channel, in ascending order (PiX, Section 3.3, "Channel Space Partition").

    - ``contiguous`` with a ``zeta``: runs of ``zeta`` neighbours, the last one shorter where ``zeta`` does not divide.
    - ``contiguous`` without: ``out_channels`` runs whose sizes differ by at most one, the longer ones first.
    - ``strided``: subset ``i`` is ``i, i + out_channels, i + 2 out_channels, …``, so sizes differ by at most one here too.
    - lists of channels: these, in their order. They have the sizes of contiguous subsets.

    Raises:
        InputError: for sizes that cannot be divided so, and for an unknown ``subsets``.
    """
    check_partition(in_channels, out_channels, zeta, subsets)
    if not isinstance(subsets, str):
        return [list(subset) for subset in subsets]
    if subsets == "strided":
        return [list(range(first, in_channels, out_channels)) for first in range(out_channels)]
    channels = iter(range(in_channels))
    return [[next(channels) for _ in range(size)] for count, size in contiguous_runs(in_channels, out_channels, zeta) for _ in range(count)]


def contiguous_runs(in_channels: int, out_channels: int, zeta: int | None) -> list[tuple[int, int]]:
    """Contiguous subsets as at most two groups of equal runs: ``(how many runs, channels in each)``, in channel order."""
    if zeta is not None:
        whole, rest = divmod(in_channels, zeta)
        groups = [(whole, zeta), (1, rest)]
    else:
        size, longer = divmod(in_channels, out_channels)
        groups = [(longer, size + 1), (out_channels - longer, size)]
    return [(count, size) for count, size in groups if count and size]


def check_partition(in_channels: int, out_channels: int, zeta: int | None, subsets: Subsets) -> None:
    """Refuse sizes that no partition fits.

    Raises:
        InputError: ``out_channels`` outside 1 to ``in_channels``, ``zeta`` under 1 or not leading to ``out_channels``,
            ``subsets`` unknown, or lists that are no partition of such sizes.
    """
    where = f"PiX from {in_channels!r} to {out_channels!r} channels, zeta={zeta!r}, subsets={subsets!r:.80}"

    def refuse(what: str, to_do: str) -> InputError:
        return InputError(what, where=where, not_done="no layer was built", to_do=to_do)

    if isinstance(subsets, str) and subsets not in SUBSETS:
        raise refuse(f"{subsets!r} is no kind of subset.", f"choose one of {', '.join(SUBSETS)}")
    numbers = {"in_channels": in_channels, "out_channels": out_channels, "zeta": 1 if zeta is None else zeta}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise refuse(f"{name} is {value!r}.", f"give {name} as a whole number of at least 1")
    if out_channels > in_channels:
        raise refuse("PiX never adds channels: every output needs an input channel of its own.", "ask for fewer outputs")
    if zeta is not None and out_channels != -(-in_channels // zeta):
        raise refuse(
            f"Subsets of {zeta} channels make {-(-in_channels // zeta)} outputs, not {out_channels}.",
            "let out_channels be in_channels / zeta rounded up, or leave zeta out for subsets of nearly equal size",
        )
    if not isinstance(subsets, str):
        sizes = [size for count, size in contiguous_runs(in_channels, out_channels, zeta) for _ in range(count)]
        named = sorted(channel for subset in subsets for channel in subset)
        if [len(subset) for subset in subsets] != sizes or named != list(range(in_channels)):
            raise refuse(
                f"The subsets named are no partition of {in_channels} channels with the sizes of contiguous ones.",
                "name every channel once, in subsets of the sizes that contiguous ones would have",
            )
