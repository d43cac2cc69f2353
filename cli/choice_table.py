"""Where a conversion cuts, as it is shown: what each site saves and costs, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from chansurg.cli.numbers import large, relative_error
from chansurg.cli.reporting import Report, grid
from chansurg.surgery.drift import ran_on

if TYPE_CHECKING:
    from chansurg.surgery.selecting.trade import Choice

_LEFT_OUT = 3


def show_choice(report: Report, choice: Choice, seconds: float) -> None:
    """Every site that was taken, and the first of the others; all where the reader asked for all."""
    fitted = ", each trial calibrated" if choice.calibrated else ""
    report.say(f"where to cut, tried on {ran_on(choice.kind, choice.inputs)}{fitted} ({seconds:.0f} s)")
    taken = [site for site in choice.sites if site.taken]
    others = [site for site in choice.sites if not site.taken]
    shown = others if report.verbose else others[:_LEFT_OUT]
    table = grid("site", ">MACs saved", ">drift alone", "")
    for site in (*taken, *shown):
        saved = large(site.macs_saved) if site.macs_saved >= 0 else f"-{large(-site.macs_saved)}"
        drift = "-" if site.drift is None else relative_error(site.drift)
        table.add_row(site.path, saved, drift, Text("taken", style="green") if site.taken else Text(site.reason, style="dim"))
    report.out.print(table)
    if len(others) > len(shown):
        report.say(f"and {len(others) - len(shown)} sites more that stay as they are (-v lists them)", style="dim")
    report.say(f"together: {choice.macs:.3f} of the original's MACs, drift of the outputs {relative_error(choice.drift)}\n")
