"""``chansurg bench``: how quick a model is on this machine, beside another that is timed in turn with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chansurg.cli.model_options import MODEL_HELP, Arch, Model, Pretrained, TrustPickle, given, parse_input_size, read_model
from chansurg.cli.numbers import counted
from chansurg.cli.reporting import Report, grid
from chansurg.surgery.errors import InputError

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = (
    "chansurg bench resnet50-pix.safetensors --against resnet50.pth",
    "chansurg bench resnet50-pix.safetensors --against resnet50 --runtime eager,onnxruntime --batch-size 1,8 --json > speed.json",
    "chansurg bench resnet50-mod.safetensors --against resnet50 --per-layer",
)
PANEL = "Timing"


def bench(
    report: Report,
    model: Model,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help=f"Timed in turn with it. {MODEL_HELP}", show_default=False, parser=given),
    ] = None,
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="NAMES", help="Of eager, compile, onnxruntime, aoti, cuda-graph.", rich_help_panel=PANEL)
    ] = "eager",
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N,…", help="Images a forward pass: 1,8.", rich_help_panel=PANEL)
    ] = "1",
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input-size",
            metavar="SIZE",
            help="H, H,W or C,H,W in pixels; several with semicolons between: '160;224'.",
            rich_help_panel=PANEL,
            show_default="the model's own",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAMES", help="cpu, cuda, cuda:1, …; several with commas.", rich_help_panel=PANEL)
    ] = "cpu",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="NAMES", help="Of float32, bfloat16, float16.", rich_help_panel=PANEL)
    ] = "float32",
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="NAMES",
            help="Of contiguous (NCHW), channels_last; each side runs in the one it is quicker in.",
            rich_help_panel=PANEL,
        ),
    ] = "contiguous,channels_last",
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, metavar="N", help="Threads that compute.", rich_help_panel=PANEL, show_default="torch's own"),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0, metavar="S", help="How long a row may go on until its ratio is known.", rich_help_panel=PANEL),
    ] = 10.0,
    as_it_is: Annotated[
        bool, typer.Option("--as-it-is", help="Time both sides as they are, without folding norms and the like.", rich_help_panel=PANEL)
    ] = False,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure the peak of memory too.", rich_help_panel=PANEL)] = True,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="With --against: time each part that differs by itself.", rich_help_panel=PANEL)
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="Time a training step, forward and backward, in eager and compile.", rich_help_panel=PANEL)
    ] = False,
    arch: Arch = None,
    pretrained: Pretrained = False,
    trust_pickle: TrustPickle = False,
) -> int:
    """How quick a model is on this machine.

    With --against, both are timed in turn with the same treatment, and beside each speed-up stands what the MACs allow. Where the machine
    is too noisy to tell a ratio, it says so instead.
    """
    if per_layer and against is None:
        raise _bad("There is nothing to compare the layers with.", "--per-layer", "Name the original with --against.")
    batch_sizes = _whole_numbers(batch_size)
    sizes = None if input_size is None else [size for text in input_size.split(";") if (size := parse_input_size(text)) is not None]
    network = read_model(report, model, arch, None, pretrained=pretrained, trust_pickle=trust_pickle)
    other: nn.Module | None = None
    if against is not None:
        other = read_model(report, against, arch, None, pretrained=pretrained, trust_pickle=trust_pickle)

    import chansurg

    with report.progress("timing", "rows") as progress:
        found = chansurg.bench(
            network,
            other,
            runtimes=_names(runtime),
            batch_sizes=batch_sizes,
            input_sizes=sizes,
            devices=_names(device),
            dtypes=_names(dtype),
            layouts=_names(layout),
            threads=threads,
            optimized=not as_it_is,
            memory=memory,
            per_layer=per_layer,
            training=training,
            seconds=seconds,
            progress=progress,
        )
    document = {"model": model, "against": against, **found.as_json()}
    report.result(document, line=_line(document), show=lambda: _show(report, document))
    return 0 if any(row["reason"] is None for row in document["results"]) else 1


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(name) for name in _names(text)]
    except ValueError:
        raise _bad(f"{text!r} are no batch sizes.", "--batch-size", "Pass whole numbers with commas between: 1,8.") from None


def _bad(what: str, option: str, to_do: str) -> InputError:
    return InputError(what, where=f"option {option}", not_done="Nothing was timed.", to_do=to_do)


def _line(document: Mapping[str, Any]) -> str:
    told = []
    for row in document["results"]:
        value = "failed" if row["median_ms"] is None else f"{row['median_ms']:.4g} ms"
        if row["speedup"] is not None:
            value += f" ({row['speedup']:.2f}x)"
        told.append(f"{row['runtime']} batch {row['batch_size']} {value}")
    return "  ".join(told)


def _show(report: Report, document: Mapping[str, Any]) -> None:
    rows = document["results"]
    beside = "" if document["against"] is None else f" against {document['against']}"
    report.out.print(f"{document['model']}{beside}", style="bold", soft_wrap=True)
    for machine in document["machine"].values():
        libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
        place = "" if machine["device"] == "cpu" else f", {machine['device']}"
        threads, step = counted(document["threads"], "thread"), "; a training step" if document["training"] else ""
        report.say(f"{machine['processor']} ({machine['vectors']}){place}, {threads}; {libraries}{step}", style="dim")
    report.out.print(_table(rows, document["against"] is not None, quartiles=report.verbose))
    if document["against"] is not None and any(row["speedup"] is not None for row in rows):
        report.say("kept: share of the saving in time that the MACs promise", style="dim")
    for row in rows:
        if row["reason"] or row["noise"]:
            told = row["reason"] or f"too noisy to tell a speed-up: {row['noise']}"
            report.say(f"{row['runtime']}, batch {row['batch_size']}, {_size(row)}: {told}", style="yellow")
    if (others := document["others_share"]) is not None and others > BUSY:
        report.say(f"Other processes kept {others:.0%} of the processors busy meanwhile; times on a quiet machine differ.", style="yellow")
    _show_layers(report, document["layers"])
    for note in document["notes"]:
        report.say(note, style="yellow")


BUSY = 0.1
"""Share of the processors that others may use before the reader is told."""


def _table(rows: Sequence[Mapping[str, Any]], compared: bool, *, quartiles: bool) -> Any:
    varying = [name for name in ("device", "dtype", "input_size") if len({str(row[name]) for row in rows}) > 1]
    columns = ["runtime", *(name.replace("_", " ") for name in varying), ">batch", ">ms", *[">quartiles"] * quartiles]
    columns += ["in", ">images/s", ">peak MB"]
    table = grid(*columns, *([">against ms", "in", ">speed-up", ">MACs allow", ">kept"] if compared else []))
    for row in rows:
        cells = [row["runtime"], *(_size(row) if name == "input_size" else str(row[name]) for name in varying), str(row["batch_size"])]
        if row["median_ms"] is None:
            table.add_row(*cells, "-")
            continue
        lower, upper = row["quartiles_ms"]
        memory = "-" if row["peak_memory"] is None else f"{row['peak_memory'] / 1e6:.1f}"
        cells += [
            _ms(row["median_ms"]),
            *[f"{_ms(lower)}-{_ms(upper)}"] * quartiles,
            row["layout"] or "its own",
            f"{row['throughput']:.4g}",
            memory,
        ]
        if compared:
            cells += [_ms(row["against_median_ms"]), row["against_layout"] or "its own", *_gain(row)]
        table.add_row(*cells)
    return table


def _gain(row: Mapping[str, Any]) -> list[str]:
    speedup = "too noisy" if row["speedup"] is None else f"{row['speedup']:.2f}x"
    allowed = "-" if row["macs_allow"] is None else f"{row['macs_allow']:.2f}x"
    return [speedup, allowed, "-" if row["promise_kept"] is None else f"{row['promise_kept']:.0%}"]


def _show_layers(report: Report, layers: Sequence[Mapping[str, Any]]) -> None:
    if not layers:
        return
    table = grid("part", "what", ">batch", "runtime", ">ms", ">against ms", ">speed-up", ">MACs allow", "")
    for layer in layers:
        cells = [layer["path"], layer["kind"], str(layer["batch_size"]), layer["runtime"]]
        if layer["median_ms"] is None:
            table.add_row(*cells, "-", "-", "-", "-", layer["reason"])
            continue
        table.add_row(
            *cells, _ms(layer["median_ms"]), _ms(layer["against_median_ms"]), *_gain(layer)[:2], "slower" if layer["slower"] else ""
        )
    report.out.print()
    report.out.print(table)
    slower = [layer["path"] for layer in layers if layer["slower"]]
    report.say(f"{counted(len(slower), 'part')} of {len(layers)} slower than in the other network", style="dim")


def _ms(value: float) -> str:
    return f"{value:.4g}"


def _size(row: Mapping[str, Any]) -> str:
    return "x".join(map(str, row["input_size"]))
