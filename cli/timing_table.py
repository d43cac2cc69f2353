"""What sites take on this machine, as it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from chansurg.cli.numbers import counted
from chansurg.cli.reporting import Report, grid

if TYPE_CHECKING:
    from chansurg.surgery.selecting.timed import Timing


def show_timing(report: Report, timing: Timing) -> None:
    """Every site with its milliseconds, those that are left as they are with the reason."""
    where = f"{timing.where.runtime}, {counted(timing.where.batch_size, 'image')}, {counted(timing.threads, 'thread')}"
    report.say(f"what the sites take on this machine, in turn ({where})")
    table = grid("site", "timed as", ">before, ms", ">after, ms", ">speed-up", "")
    for site in timing.sites:
        times = ["-"] * 3
        if site.before_ms is not None and site.after_ms is not None:
            times = [f"{site.before_ms:.3f}", f"{site.after_ms:.3f}", f"{site.before_ms / site.after_ms:.2f}"]
        verdict = Text("taken", style="green") if site.faster else Text(site.reason, style="dim")
        table.add_row(site.path, "" if site.module == site.path else site.module, *times, verdict)
    report.out.print(table)
    gained = [site for site in timing.sites if site.faster]
    modules = {site.module: site for site in gained}.values()  # sites may share one
    before, after = (sum(getattr(site, name) or 0.0 for site in modules) for name in ("before_ms", "after_ms"))
    report.say(f"{counted(len(gained), 'site')} of {len(timing.sites)} taken: {before:.2f} ms become {after:.2f} ms\n")
