"""All results as one Markdown table: a row for each network and way, seeds taken together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.recovery.results import Result

COLUMNS = (
    "network",
    "row",
    "seeds",
    "converted only, %",
    "calibrated, untrained, %",
    "top-1 on val, %",
    "beside the network itself",
    "MACs",
    "of the original",
    "parameters",
    "latency, ms",
    "speed-up",
    "minutes",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * 2}{'---:|' * (len(COLUMNS) - 2)}"

NOISE = 0.25
"""From this spread on a speed-up is marked: something else was running."""


def by_row(results: Iterable[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results of one network and row together, over all seeds."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.network, result.row), []).append(result)
    return groups


def render(results: Sequence[Result], titles: Mapping[str, str]) -> str:
    """The table.

    Args:
        results: of all rows and seeds.
        titles: what each row is called, in the order of the table.
    """
    groups = by_row(results)
    lines = [HEADER]
    for network in dict.fromkeys(result.network for result in results):
        dense = {result.seed: result.top1 for result in groups.get((network, "dense"), [])}
        for row, title in titles.items():
            if (network, row) in groups:
                lines.append(_line(network, title, groups[network, row], dense))
    return "\n".join(lines) + "\n"


def _line(network: str, title: str, group: Sequence[Result], dense: Mapping[int, float]) -> str:
    def middle(number: Callable[[Result], float]) -> float:
        return statistics.mean(map(number, group))

    noisy = any(result.latency_spread > NOISE for result in group)
    gaps = [result.top1 - dense[result.seed] for result in group if result.seed in dense]
    cells = [
        network,
        title,
        str(len(group)),
        _known([result.uncalibrated for result in group]),
        _known([result.untrained for result in group]),
        spread([result.top1 for result in group]),
        spread(gaps, sign="+") if gaps else "",
        f"{middle(lambda result: result.macs) / 1e6:.2f} M",
        f"{middle(lambda result: result.macs / result.original_macs):.1%}",
        f"{middle(lambda result: result.params) / 1e3:.0f} k",
        f"{middle(lambda result: result.latency_ms):.2f}",
        f"{middle(lambda result: result.speedup):.2f}x{' (noisy)' if noisy else ''}",
        f"{middle(lambda result: result.seconds) / 60:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _known(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if known else ""


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and, for several values, their standard deviation."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"
