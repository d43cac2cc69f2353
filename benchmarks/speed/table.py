"""All results as Markdown: the speed-ups beside what MACs allow, and the times that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.rows import NETWORKS, ROWS

LEAST = 0.9
"""The share of what MACs allow that a speed-up should reach; less is marked."""


def render(documents: Sequence[Mapping[str, Any]]) -> str:
    """Both tables.

    Args:
        documents: one for each network, row and runtime, as ``measure`` makes them.
    """
    runtimes = list(dict.fromkeys(document["runtime"] for document in documents))
    found = {(document["network"], document["row"], document["runtime"]): document for document in documents}
    lines = [*_machine(documents), "", f"| network | made smaller by | MACs allow | {' | '.join(runtimes)} |"]
    lines.append(f"|---|---|---:|{'---:|' * len(runtimes)}")
    for network in NETWORKS:
        for row, how in ROWS.items():
            chosen = [found.get((network, row, runtime)) for runtime in runtimes]
            allowed = next((one["macs_allow"] for document in chosen if document for one in document["results"]), None)
            if any(chosen):
                cells = " | ".join("" if document is None else _speedups(document) for document in chosen)
                lines.append(f"| {network} | {how.title} | {'' if allowed is None else f'{allowed:.2f}'} | {cells} |")
    lines += ["", f"Speed-ups by batch size, in brackets over what the MACs allow; below {LEAST:.0%} of that in italics.", ""]
    lines += ["| network | made smaller by | runtime | batch | ms | layout | original, ms | layout | speed-up | 95 % |"]
    lines += ["|---|---|---|---:|---:|---|---:|---|---:|---:|"]
    lines += [_detail(document, row) for document in documents for row in document["results"]]
    return "\n".join(lines) + "\n"


def _machine(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """The machines and numbers of threads that were measured with, a line each."""
    told = {}
    for document in documents:
        for machine in document.get("machine", {}).values():
            libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
            told[f"{machine['processor']}, {machine['device']}, {document['threads']} threads, {libraries}"] = None
    return list(told)


def _speedups(document: Mapping[str, Any]) -> str:
    if "refused" in document:
        return "no site"
    return ", ".join(_speedup(row) for row in document["results"])


def _speedup(row: Mapping[str, Any]) -> str:
    if row["median_ms"] is None:
        return "failed"
    if row["speedup"] is None:
        return "too noisy"
    share = row["speedup"] / row["macs_allow"]
    told = f"{row['speedup']:.2f} ({share:.0%})"
    return told if share >= LEAST else f"*{told}*"


def _detail(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    start = f"| {document['network']} | {ROWS[document['row']].title} | {row['runtime']} | {row['batch_size']} |"
    if row["median_ms"] is None:
        return f"{start} | | | | {row['reason']} | |"
    low, high = row["speedup_interval"]
    layouts = [row[name] or "its own" for name in ("layout", "against_layout")]
    told = "too noisy" if row["speedup"] is None else f"{row['speedup']:.2f}"
    times = [f"{row[name]:.2f} | {layout}" for name, layout in zip(("median_ms", "against_median_ms"), layouts, strict=True)]
    return f"{start} {' | '.join(times)} | {told} | {low:.2f} to {high:.2f} |"
