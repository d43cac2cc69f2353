"""``chansurg diff``: in what two models differ, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from chansurg.cli.model_options import MODEL_HELP, Arch, TrustPickle, given, read_model
from chansurg.cli.numbers import difference
from chansurg.cli.reporting import Report, grid

EXAMPLES = ("chansurg diff resnet50.pth resnet50-pix.safetensors", "chansurg diff a.safetensors b.safetensors --json")
SHOWN = 8


def diff(
    report: Report,
    a: Annotated[str, typer.Argument(metavar="A", help=MODEL_HELP, show_default=False, parser=given)],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False, parser=given)],
    arch: Arch = None,
    trust_pickle: TrustPickle = False,
) -> None:
    """In what two models differ: architecture, journal, edits, tensors.

    Where `verify` compares what they compute, `diff` compares what they are made of.
    """
    first = read_model(report, a, arch, None, trust_pickle=trust_pickle)
    second = read_model(report, b, arch, None, trust_pickle=trust_pickle)

    import chansurg

    document = chansurg.diff(first, second).as_json()
    report.result(document, line=_line(document), show=lambda: _show(report, a, b, document))


def _line(document: Mapping[str, Any]) -> str:
    alone = len(document["tensors_only_in_a"]) + len(document["tensors_only_in_b"])
    return f"{document['equal']} equal  {len(document['changed'])} changed  {len(document['reshaped'])} reshaped  {alone} in one only"


def _show(report: Report, a: str, b: str, document: Mapping[str, Any]) -> None:
    out, limit = report.out, None if report.verbose else SHOWN
    out.print(f"A  {a}\nB  {b}", style="bold", soft_wrap=True)
    out.print(f"architecture  {'the same' if document['same_architecture'] else 'another'}")
    out.print(f"journal       {'the same' if document['same_journal'] else 'another'}")
    out.print(f"tensors       {_line(document)}")
    for side in "ab":
        edits = [f"{edit['op']} {edit['path']}" for edit in document[f"edits_only_in_{side}"]]
        _list(report, f"edits only in {side.upper()}", edits, limit)
        _list(report, f"tensors only in {side.upper()}", document[f"tensors_only_in_{side}"], limit)
    _list(report, "reshaped", [f"{t['name']}  {t['a']} => {t['b']}" for t in document["reshaped"]], limit)
    if document["changed"]:
        table = grid("changed", ">max abs difference")
        for tensor in document["changed"][:limit]:
            table.add_row(tensor["name"], difference(tensor["max_abs_difference"]))
        out.print()
        out.print(table)
        _more(report, len(document["changed"]), limit)


def _list(report: Report, title: str, lines: list[str], limit: int | None) -> None:
    if not lines:
        return
    report.out.print(f"\n{title} ({len(lines)})", style="dim")
    for line in lines[:limit]:
        report.out.print(f"  {line}", soft_wrap=True)
    _more(report, len(lines), limit)


def _more(report: Report, total: int, limit: int | None) -> None:
    if limit is not None and total > limit:
        report.out.print(f"  … and {total - limit} more; -v shows all", style="dim")
