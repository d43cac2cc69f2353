"""The page's parts: an overview of all networks, and a section for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from chansurg.surgery.delivery.report import charts
from chansurg.surgery.delivery.report.speeds import Speed
from chansurg.surgery.delivery.report.subject import Subject, drift_of
from chansurg.surgery.drift import ran_on
from chansurg.surgery.journal import Entry
from chansurg.surgery.recipe import flag
from chansurg.surgery.training.settings import Settings


def overview(subjects: Sequence[Subject], speeds: Sequence[Speed]) -> str:
    """All networks in one table, and the pictures that compare them."""
    header = ["network", "done to it", ">top-1 on val", ">parameters", ">MACs", ">memory access", ">speed-up"]
    rows = []
    for subject in subjects:
        steps = " > ".join(entry.recipe for entry in subject.record.journal) or "nothing"
        speedups = [row["speedup"] for speed in speeds if speed.is_of(subject.name) for row in speed.rows if row.get("speedup")]
        rows.append(
            [
                subject.name,
                steps,
                "-" if subject.accuracy is None else f"{subject.accuracy:.2f} %",
                *(_with_share(getattr(subject.counts, name), subject.share(name)) for name in ("params", "macs", "memory_access")),
                " to ".join(dict.fromkeys(f"{end(speedups):.2f}x" for end in (min, max))) if speedups else "-",
            ]
        )
    body = [f'<section id="overview"><h2>Overview</h2>{_table(header, rows)}']
    body.append('<p class="soft">In brackets: the share of what the network was before anything was done to it.</p>')
    if any(subject.accuracy is not None for subject in subjects):
        body.append('<p class="soft">Top-1 is what the last training run of the journal reached on its own val images.</p>')
    body.append(_figure(charts.shares(subjects)))
    body.append(_figure(charts.accuracies(subjects)))
    return "".join([*body, "</section>"])


def model_section(subject: Subject, speeds: Sequence[Speed], place: str) -> str:
    """One network."""
    record = subject.record
    size = "x".join(map(str, record.preprocessing.input_size))
    told = f"{record.architecture or 'a network of its own'}, input {size}"
    body = [f'<section id="{place}"><h2>{escape(subject.name)}</h2><p class="soft">{escape(told)}']
    body.append(f", sha256 <code>{subject.sha256[:16]}</code></p>" if subject.sha256 else "</p>")
    body.append(f"<h3>Counts</h3>{_counts(subject)}")
    kept, there = subject.gates
    if kept < there:
        body.append(f"<p>Its masks keep {kept:,} of {there:,} channels; <code>chansurg slice</code> removes the others.</p>")
    body.append(f"<h3>Channels of every layer</h3>{_widths(subject)}")
    if record.journal:
        body.append('<h3>Journal</h3><ol class="journal">')
        body += [f"<li>{_entry(entry)}</li>" for entry in record.journal]
        body.append("</ol>")
    body += [_drift(number, entry) for number, entry in enumerate(record.journal, 1)]
    for run in subject.runs:
        figures = "".join(map(_figure, charts.training(run)))
        body.append(f'<h3>Training, entry {run.number} of the journal</h3><div class="pair">{figures}</div>')
    body += [f"<h3>Speed{f' against {escape(speed.against)}' if speed.against else ''}</h3>{speed_section(speed)}" for speed in speeds]
    return "".join([*body, "</section>"])


def speed_section(speed: Speed) -> str:
    """One benchmark: the picture, the table, the parts that differ."""
    compared = speed.against is not None
    document = speed.document
    told = [f"{machine['processor']}, {machine['device']}" for machine in _mappings(document.get("machine", {}).values())]
    told.append(f"threads: {document['threads']}" if document.get("threads") else "")
    told.append("both optimised" if document.get("optimized") and compared else "optimised" if document.get("optimized") else "as it is")
    if document.get("training"):
        told.append("a training step, forward and backward")
    body = [f"<p>{escape(speed.model)}{f' and {escape(str(speed.against))}, timed in turn' if compared else ''}.</p>"]
    body.append(f'<p class="soft">{escape("; ".join(filter(None, told)))}</p>{_figure(charts.speedups(speed))}')
    header = ["runtime", ">ms", "layout", ">images/s", ">peak MB"]
    header += [">against, ms", "layout", ">speed-up", ">MACs allow", ">kept"] if compared else []
    rows, notes = [], []
    for row in speed.rows:
        cells = [charts.row_name(row)]
        if row.get("median_ms") is None:
            notes.append(f"{charts.row_name(row)}: {row.get('reason') or 'not timed'}")
            continue
        memory = row.get("peak_memory")
        cells += [_milliseconds(row["median_ms"]), row.get("layout") or "its own", f"{row.get('throughput') or 0:.4g}"]
        cells.append("-" if memory is None else f"{memory / 1e6:.1f}")
        if compared:
            cells += [_milliseconds(row.get("against_median_ms")), row.get("against_layout") or "its own", *_gain(row)]
        rows.append(cells)
        if row.get("noise"):
            notes.append(f"{charts.row_name(row)}: too noisy to tell a speed-up: {row['noise']}")
    body.append(_table(header, rows) if rows else "")
    body.append('<p class="soft">Kept is the share of the saving in time that the MACs promise.</p>' if compared and rows else "")
    body += [f'<p class="soft">{escape(note)}</p>' for note in notes]
    return "".join([*body, _layers(speed)])


def _counts(subject: Subject) -> str:
    header = ["", ">original", ">now", ">now / original"]
    rows = []
    for quantity, name in charts.QUANTITIES.items():
        now, before, share = subject.counts.as_json()[quantity], subject.original.get(quantity), subject.share(quantity)
        rows.append([name, "-" if before is None else f"{before:,}", f"{now:,}", "-" if share is None else f"{share:.3f}"])
    return _table(header, rows)


def _widths(subject: Subject) -> str:
    if not subject.widths:
        return "<p>It has no layers with channels.</p>"
    legend = (
        '<span class="swatch" style="background:var(--mark)"></span>as it is now'
        '<span class="swatch" style="background:var(--recipe)"></span>a layer of a recipe'
        '<span class="swatch" style="background:var(--ghost)"></span>as it was'
    )
    rows = [[width.path, _sizes(width.before), _sizes(width.now)] for width in subject.widths]
    table = _table(["layer", "original, in to out", "now"], rows)
    return f"{_figure(charts.widths(subject.widths), legend)}<details><summary>As a table</summary>{table}</details>"


def _sizes(sizes: tuple[int, int] | None) -> str:
    return "-" if sizes is None else f"{sizes[0]} to {sizes[1]}"


def _entry(entry: Entry) -> str:
    usual = Settings().as_json() if entry.kind == "finetune" else {}
    options = {name: value for name, value in entry.options.items() if value is not None and not (name in usual and usual[name] == value)}
    flags = " ".join(f"{flag(name)} {value}" for name, value in options.items())
    told = [f"from {entry.parent_file}" if entry.parent_file else "in memory", f"seed {entry.seed}"]
    if entry.edits:
        told.append(f"{len(entry.edits)} edit{'s' if len(entry.edits) > 1 else ''}")
    if entry.before.get("macs") and entry.after.get("macs"):
        told.append(f"MACs {_large(entry.before['macs'])} to {_large(entry.after['macs'])}")
    for name, what in (("epochs", "epochs"), ("val_top1", "% top-1 on val"), ("max_rel_error", "largest relative error")):
        value = entry.results.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            told.append(f"{value:.4g} {what}" if name != "max_rel_error" else f"{what} {value:.2g}")
    return f'<strong>{escape(entry.recipe)}</strong> <code>{escape(flags)}</code><br><span class="soft">{escape("; ".join(told))}</span>'


def _drift(number: int, entry: Entry) -> str:
    found = drift_of(entry)
    if found is None or not found["blocks"]:
        return ""
    told = [f"measured on {ran_on(found['kind'], found['inputs'])}"] if {"inputs", "kind"} <= set(found) else []
    if isinstance(found.get("outputs"), int | float):
        told.append(f"outputs {found['outputs']:.3g}")
    if isinstance(found.get("agreement"), int | float):
        told.append(f"{100 * found['agreement']:.1f} % of predictions stay")
    return f"<h3>Drift of entry {number}, {escape(entry.recipe)}</h3>{_figure(charts.drift(found['blocks']), escape('; '.join(told)))}"


def _layers(speed: Speed) -> str:
    if not speed.layers:
        return ""
    rows = []
    for layer in speed.layers:
        told = "slower" if layer.get("slower") else "" if layer.get("slower") is False else "cannot be told"
        timed = [_milliseconds(layer.get("median_ms")), _milliseconds(layer.get("against_median_ms"))]
        rows.append([str(layer.get("path", "")), charts.row_name(layer), *timed, *_gain(layer)[:2], told])
    slower = sum(bool(layer.get("slower")) for layer in speed.layers)
    table = _table(["part", "", ">ms", ">against, ms", ">speed-up", ">MACs allow", ""], rows, worse="slower")
    return f"<details><summary>Part by part: {slower} of {len(rows)} slower than in the other network</summary>{table}</details>"


def _gain(row: Mapping[str, Any]) -> list[str]:
    speedup, allowed, kept = (row.get(name) for name in ("speedup", "macs_allow", "promise_kept"))
    return [
        "too noisy" if speedup is None else f"{speedup:.2f}x",
        "-" if allowed is None else f"{allowed:.2f}x",
        "-" if kept is None else f"{kept:.0%}",
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], worse: str | None = None) -> str:
    """A table; a column's name that starts with ``>`` holds numbers, and a cell that says ``worse`` is marked."""
    numbers = [name.startswith(">") for name in header]
    named = "".join(
        f'<th scope="col"{" class=n" if number else ""}>{escape(name.removeprefix(">"))}</th>'
        for name, number in zip(header, numbers, strict=True)
    )
    lines = []
    for row in rows:
        looks = [" class=n" if number else " class=worse" if cell == worse else "" for number, cell in zip(numbers, row, strict=True)]
        lines.append("".join(f"<td{look}>{escape(cell)}</td>" for look, cell in zip(looks, row, strict=True)))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{named}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table">{table}</div>'


def _figure(picture: str, caption: str = "") -> str:
    """A picture with a caption, which is HTML; nothing for no picture."""
    return f"<figure>{picture}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>" if picture else ""


def _with_share(number: int, share: float | None) -> str:
    return _large(number) + ("" if share is None else f" ({share:.0%})")


def _large(number: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return str(number)


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _mappings(values: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [value for value in values if isinstance(value, Mapping) and {"processor", "device"} <= set(value)]
