"""All results as one picture: accuracy against multiply-accumulates, a panel for each network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.recovery.results import Result
from benchmarks.recovery.table import by_row


def draw(results: Sequence[Result], titles: Mapping[str, str], target: Path) -> None:
    """Write a PNG; bars span the seeds' lowest and highest accuracy."""
    groups = by_row(results)
    networks = list(dict.fromkeys(result.network for result in results))
    figure = Figure(figsize=(6 * len(networks), 5), layout="constrained")
    panels = figure.subplots(1, len(networks), squeeze=False)
    for network, panel in zip(networks, panels[0], strict=True):
        for index, (row, title) in enumerate(titles.items()):
            group = groups.get((network, row), [])
            if not group:
                continue
            accuracy = statistics.mean(result.top1 for result in group)
            macs = statistics.mean(result.macs for result in group) / 1e6
            bars = [[accuracy - min(result.top1 for result in group)], [max(result.top1 for result in group) - accuracy]]
            panel.errorbar([macs], [accuracy], yerr=bars, fmt="osD^v<>p*X"[index % 10], color=f"C{index}", capsize=3, label=title)
        panel.set(title=network, xlabel="multiply-accumulates, millions", ylabel="top-1 on val, %", xlim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.savefig(target, dpi=150)
