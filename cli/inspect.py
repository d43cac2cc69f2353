"""``chansurg inspect``: what a model is, what it costs, and where each recipe applies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from chansurg.cli.drift_table import show_drift
from chansurg.cli.left_alone import show_skipped
from chansurg.cli.model_options import Arch, InputSize, Model, Pretrained, TrustPickle, read_model
from chansurg.cli.numbers import counted, counts_table, large
from chansurg.cli.reporting import Report, grid
from chansurg.surgery.listing import by_reason, path_list

if TYPE_CHECKING:
    from chansurg.surgery.drift import Drift

EXAMPLES = (
    "chansurg inspect resnet50.pth",
    "chansurg inspect mobilenet_v2 --input-size 160",
    "chansurg inspect weights.pth --arch mypackage.networks:build --json",
)


def inspect(
    report: Report,
    model: Model,
    arch: Arch = None,
    input_size: InputSize = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
) -> None:
    """What a model is, what it costs, and where each recipe applies.

    What a recipe leaves alone is told with the reason.
    """
    network = read_model(report, model, arch, input_size, pretrained=pretrained, trust_pickle=trust_pickle)

    import chansurg

    found = chansurg.inspect(network)
    document = found.as_json()
    report.result(
        document,
        line=f"{document['architecture'] or type(network).__name__}  {large(document['params'])} params  {large(document['macs'])} MACs",
        show=lambda: _show(report, model, document, found.drift),
    )


def _show(report: Report, model: str, document: Mapping[str, Any], drift: Sequence[tuple[str, Drift]]) -> None:
    out = report.out
    size = "x".join(str(length) for length in document["input_size"])
    report.say(Text.assemble((model, "bold"), f"  {document['architecture'] or 'a network of its own'}, input {size}\n"))
    out.print(counts_table(document))
    if document["uncounted"]:
        report.say(f"in none of these counts: {', '.join(document['uncounted'])}", style="dim")
    for reason, paths in by_reason((skip["path"], skip["reason"]) for skip in document["untraced"]).items():
        report.say(f"not traced: {path_list(paths, limit=None if report.verbose else 3)}: {reason}", style="yellow")
    for recipe, found in drift:
        show_drift(report, found, title=f"drift of {recipe} before any training")
    _show_stages(report, document["stages"])
    for recipe, sites in document["sites"].items():
        _show_sites(report, recipe, sites)
        show_skipped(report, document["skipped"].get(recipe, []))


def _show_stages(report: Report, stages: list[dict[str, Any]]) -> None:
    if not stages:
        return
    table = grid("stage", ">blocks", "kind", ">output", "where")
    for number, stage in enumerate(stages, 1):
        first, last = stage["first"] or "(top)", stage["last"] or "(top)"
        where = first if first == last else f"{first} … {last}"
        table.add_row(str(number), str(stage["blocks"]), ", ".join(stage["kinds"]), "x".join(map(str, stage["shape"])), where)
    report.out.print()
    report.out.print(table)


def _show_sites(report: Report, recipe: str, sites: list[dict[str, Any]]) -> None:
    out = report.out
    out.print(Text.assemble("\n", (recipe, "bold"), f": {counted(len(sites), 'site') if sites else 'no sites'}"))
    kinds: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        kinds.setdefault((site["kind"], _detail(site)), []).append(site["path"])
    if not kinds:
        return
    table = grid("  kind", ">sites", "each", "where")
    for (kind, detail), paths in kinds.items():
        table.add_row(f"  {kind}", str(len(paths)), detail, path_list(paths, limit=None if report.verbose else 1))
    out.print(table)


def _detail(site: Mapping[str, Any]) -> str:
    """``256 -> 64 channels, ratio 4``: what sites of a kind may share; their paths are told elsewhere."""
    channels = " -> ".join(str(site[key]) for key in ("in_channels", "out_channels") if key in site)
    told = ("path", "kind", "stage", "block", "expand", "in_channels", "out_channels")
    others = [
        f"{key.replace('_', ' ')} {value:g}" if isinstance(value, (int, float)) else str(value)
        for key, value in site.items()
        if key not in told
    ]
    return ", ".join([f"{channels} channels", *others] if channels else others)
