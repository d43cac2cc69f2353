"""The places that a recipe left alone, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chansurg.cli.reporting import Report
from chansurg.surgery.listing import by_reason, path_list


def show_skipped(report: Report, skipped: Sequence[Mapping[str, str]]) -> None:
    """The places left alone, under the reasons they share; every path where the reader asked for all."""
    if not skipped:
        return
    report.out.print(f"\nleft alone ({len(skipped)})", style="dim")
    for reason, paths in by_reason(((skip["path"], skip["reason"]) for skip in skipped), exact=report.verbose).items():
        where = path_list(paths, limit=None if report.verbose else 3)
        report.item(f"{reason}: {where}", style="dim")
