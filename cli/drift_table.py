"""How far a conversion has drifted, as it is shown: the outputs, and the blocks that suffer most."""

from __future__ import annotations

from chansurg.cli.numbers import relative_error
from chansurg.cli.reporting import Report, grid
from chansurg.surgery.drift import NOISE, Drift, ran_on

_BLOCKS = 5


def show_drift(report: Report, drift: Drift, *, title: str = "drift") -> None:
    """A few lines and a table; every block where the reader asked for all."""
    if drift.reason is not None:
        report.say(f"\n{title}: not measured, {drift.reason}", style="dim")
        return
    report.say(f"\n{title}, on {ran_on(drift.kind, drift.inputs)}")
    if drift.outputs == 0 and not any(drift.blocks.values()):
        report.say("none: the outputs are the same, bit for bit", style="bold green")
        return
    worst = sorted(drift.blocks.items(), key=lambda block: -(block[1] if block[1] is not None else float("inf")))
    shown = worst if report.verbose else worst[:_BLOCKS]
    table = grid("", ">relative error")
    table.add_row("outputs", relative_error(drift.outputs), style="bold")
    for path, error in shown:
        table.add_row(path, relative_error(error))
    report.out.print(table)
    if len(worst) > len(shown):
        report.say(f"and {len(worst) - len(shown)} blocks that drift less (-v lists them)", style="dim")
    if drift.agreement is not None and drift.kind != NOISE:
        report.say(f"{100 * drift.agreement:.1f} % of the predictions are the original's")


def drift_line(drift: Drift) -> str:
    """The same in a line."""
    if drift.reason is not None:
        return f"drift not measured, {drift.reason}"
    agreed = "" if drift.agreement is None or drift.kind == NOISE else f", {100 * drift.agreement:.1f} % of predictions kept"
    return f"drift of the outputs {relative_error(drift.outputs)}{agreed}, on {ran_on(drift.kind, drift.inputs)}"
