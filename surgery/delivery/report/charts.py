"""The pictures of the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chansurg.surgery.delivery.report.drawing import Drawing, steps
from chansurg.surgery.delivery.report.speeds import Speed
from chansurg.surgery.delivery.report.subject import Run, Subject, Width

WIDTH = 720.0
_LABELS = 170.0
_ROW = 22.0

QUANTITIES = {"params": "parameters", "macs": "MACs", "ops": "ops", "memory_access": "memory access"}


def shares(subjects: Sequence[Subject]) -> str:
    """What each network costs, as shares of what it began with."""
    quantities = ("params", "macs", "memory_access")
    rows = [(subject, quantity) for subject in subjects for quantity in quantities]
    most = max([1.0, *(subject.share(quantity) or 0.0 for subject, quantity in rows)])
    scale = (WIDTH - 2 * _LABELS) / most
    told = "; ".join(
        f"{subject.name}: " + ", ".join(f"{QUANTITIES[name]} {(subject.share(name) or 0):.0%}" for name in quantities)
        for subject in subjects
    )
    height = len(subjects) * (len(quantities) * _ROW + 34) + 10
    drawing = Drawing(WIDTH, height, title="Cost, as a share of the original", described=told)
    y = 16.0
    for subject in subjects:
        drawing.text(0, y, subject.name, "strong")
        y += 10
        for quantity in quantities:
            share = subject.share(quantity)
            drawing.text(_LABELS - 10, y + 14, QUANTITIES[quantity], "soft", "end")
            drawing.bar(_LABELS, y + 3, scale, _ROW - 8, "ghost", "the original")
            if share is not None:
                drawing.bar(_LABELS, y + 3, scale * share, _ROW - 8, "mark", f"{subject.name}, {QUANTITIES[quantity]}: {share:.1%}")
                drawing.text(_LABELS + scale * max(share, 1.0) + 8, y + 14, f"{share:.1%}", "number")
            y += _ROW
        y += 24
    return drawing.rendered()


def accuracies(subjects: Sequence[Subject]) -> str:
    """Top-1 against multiply-accumulates; empty where fewer than two networks know their accuracy."""
    known = [(subject, accuracy) for subject in subjects if (accuracy := subject.accuracy) is not None]
    if len(known) < 2:
        return ""
    left, right, top, bottom = 60.0, WIDTH - 150, 14.0, 250.0
    across, unit = _axis_of_counts([subject.counts.macs for subject, _ in known])
    up = steps(min(accuracy for _, accuracy in known) - 0.5, max(accuracy for _, accuracy in known) + 0.5, 4)
    told = "; ".join(f"{subject.name}: {accuracy:.2f} % at {subject.counts.macs / unit[0]:.4g} {unit[1]}" for subject, accuracy in known)
    drawing = Drawing(WIDTH, 300, title="Top-1 on val against MACs", described=told)
    _grid(drawing, (left, right, top, bottom), across, up, f"multiply-accumulates, {unit[1]}", "top-1 on val, %")
    for subject, accuracy in sorted(known, key=lambda pair: pair[1]):
        x = _along(subject.counts.macs / unit[0], across, left, right)
        y = _along(accuracy, up, bottom, top)
        drawing.dot(x, y, "mark", f"{subject.name}: {accuracy:.2f} %, {subject.counts.macs:,} MACs", 5)
        is_right = x > (left + right) / 2
        drawing.text(x + (-9 if is_right else 9), y + 4, subject.name, "label", "end" if is_right else "start")
    return drawing.rendered()


def widths(found: Sequence[Width]) -> str:
    """Channels that each layer puts out, above the line, and takes in, below it, in front of what they were."""
    column = min(18.0, max(5.0, WIDTH / max(1, len(found))))
    left, half = 44.0, 110.0
    most = max((max(sizes) for width in found for sizes in (width.now, width.before) if sizes), default=1)
    total = left + column * len(found) + 10
    changed = [width for width in found if width.before is not None and width.now != width.before]
    told = (
        f"{len(found)} layers; {len(changed)} of the original's are narrower or gone; {sum(width.is_new for width in found)} are a recipe's"
    )
    title = "Channels of every layer: out above the line, in below it"
    drawing = Drawing(total, 2 * half + 44, title=title, described=told, scrolls=total > WIDTH)
    middle = half + 16
    for number in steps(0, most, 3):
        if 0 < number <= most * 1.05:
            for sign in (-1, 1):
                y = middle + sign * half * number / most
                drawing.line(left, y, total - 10, y, "rule")
                drawing.text(left - 6, y + 4, f"{number:g}", "tick", "end")
    for position, width in enumerate(found):
        x = left + column * position
        look = "recipe" if width.is_new else "mark"
        note = f"{width.path}: {_arrow(width.now)}" + ("" if width.before in (None, width.now) else f", was {_arrow(width.before)}")
        for sizes, shape in ((width.before, "ghost"), (width.now, look)):
            if sizes is not None:
                into, out = (half * size / most for size in sizes)
                drawing.bar(x + 0.5, middle, column - 1, -out, shape, note)
                drawing.bar(x + 0.5, middle, column - 1, into, f"{shape} inner", note)
    drawing.line(left, middle, total - 10, middle, "axis")
    drawing.text(left, 2 * half + 38, "first layer", "tick")
    drawing.text(total - 10, 2 * half + 38, "last layer", "tick", "end")
    return drawing.rendered()


def drift(blocks: Sequence[Mapping[str, Any]]) -> str:
    """The relative error of what each block puts out."""
    numbers = [(str(block["path"]), block["relative_error"]) for block in blocks]
    finite = [float(error) for _, error in numbers if isinstance(error, int | float) and math.isfinite(error)]
    axis = steps(0, max([*finite, 1e-9]), 4)
    left = _room_for(path for path, _ in numbers)
    scale = (WIDTH - left - 90) / axis[-1]
    told = f"from {min(finite, default=0):.3g} to {max(finite, default=0):.3g} over {len(numbers)} blocks"
    drawing = Drawing(WIDTH, len(numbers) * 18 + 12, title="Relative error of what each block puts out", described=told)
    for position, (path, error) in enumerate(numbers):
        y = 18.0 * position
        drawing.text(left - 10, y + 14, path, "soft", "end")
        if isinstance(error, int | float) and math.isfinite(error):
            drawing.bar(left, y + 4, max(1.0, scale * error), 11, "mark", f"{path}: {error:.4g}")
            drawing.text(left + scale * error + 8, y + 14, f"{error:.3g}", "number")
        else:
            drawing.text(left, y + 14, "not finite", "number")
    return drawing.rendered()


_CURVES = {
    "loss of the task": (("train_task", "training"), ("val_loss", "val")),
    "top-1, %": (("train_top1", "training"), ("val_top1", "val")),
    "share of the original": (("budget", "reached"),),
}


def training(run: Run) -> list[str]:
    """One picture each for loss, accuracy and, where the run steered towards one, the budget."""
    pictures = []
    for title, curves in _CURVES.items():
        found = {name: points for key, name in curves if (points := _points(run.lines, key))}
        if found:
            pictures.append(_curves(title, found))
    return pictures


def _curves(title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    left, right, top, bottom = 48.0, 296.0, 30.0, 190.0
    values = [value for points in curves.values() for _, value in points]
    across = steps(min(x for points in curves.values() for x, _ in points), max(x for points in curves.values() for x, _ in points), 4)
    across = [tick for tick in across if tick == int(tick)] or across
    up = steps(min(values), max(values), 4)
    told = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in curves.items())
    drawing = Drawing(430, 236, title=f"{title} over the epochs", described=told)
    drawing.text(0, 14, title, "strong")
    _grid(drawing, (left, right, top, bottom), across, up, "epoch", "")
    ends = sorted((_along(points[-1][1], up, bottom, top), name) for name, points in curves.items())
    heights = {name: y for y, name in ends}
    for (above, _), (below, name) in itertools.pairwise(ends):
        heights[name] = max(below, above + 14)
    for number, (name, points) in enumerate(curves.items()):
        look = ("curve", "curve second")[number % 2]
        placed = [(_along(x, across, left, right), _along(value, up, bottom, top)) for x, value in points]
        drawing.path(placed, look)
        for (x, y), (epoch, value) in zip(placed, points, strict=True):
            drawing.dot(x, y, ("mark", "other")[number % 2], f"{name}, epoch {epoch:g}: {value:.4g}", 2.5)
        drawing.text(right + 8, heights[name] + 4, f"{name} {points[-1][1]:.4g}", "label")
    return drawing.rendered()


def speedups(speed: Speed) -> str:
    """The speed-up of each row with its interval, and what the MACs allow; empty where nothing was compared."""
    rows = [row for row in speed.rows if row.get("against_median_ms") is not None]
    if not rows:
        return ""
    numbers = [number for row in rows for number in (row.get("speedup"), row.get("macs_allow"), *_interval(row)) if number is not None]
    axis = steps(0, min(max([1.2, *numbers]), 20.0), 5)
    left, right = _room_for(map(row_name, rows)), WIDTH - 110
    told = "; ".join(f"{row_name(row)}: {told_speedup(row)}" for row in rows)
    drawing = Drawing(WIDTH, len(rows) * 30 + 50, title=f"Speed-up over {speed.against}", described=told)
    bottom = len(rows) * 30 + 12.0
    for tick in axis:
        x = _along(tick, axis, left, right)
        drawing.line(x, 4, x, bottom, "axis" if tick == 1 else "rule")
        drawing.text(x, bottom + 16, f"{tick:g}x", "tick", "middle")
    drawing.text((left + right) / 2, bottom + 34, "bar: measured, with its 95 % interval; diamond: what the MACs allow", "tick", "middle")
    for position, row in enumerate(rows):
        y = 30.0 * position + 8
        drawing.text(left - 10, y + 14, row_name(row), "soft", "end")
        value, allowed = row.get("speedup"), row.get("macs_allow")
        if value is not None:
            note = f"{row_name(row)}: {told_speedup(row)}"
            drawing.bar(left, y + 3, _along(min(value, axis[-1]), axis, left, right) - left, 14, "mark" if value >= 1 else "worse", note)
            drawing.text(right + 12, y + 14, f"{value:.2f}x", "number")
        else:
            drawing.text(right + 12, y + 14, "too noisy", "number")
        if len(found := _interval(row)) == 2:
            low, high = (_along(min(number, axis[-1]), axis, left, right) for number in found)
            drawing.line(low, y + 10, high, y + 10, "whisker" if value is not None else "whisker faint")
        if allowed is not None:
            x = _along(min(allowed, axis[-1]), axis, left, right)
            drawing.path([(x, y + 2), (x + 6, y + 10), (x, y + 18), (x - 6, y + 10), (x, y + 2)], "diamond")
    return drawing.rendered()


def row_name(row: Mapping[str, Any]) -> str:
    """``eager, batch 8``, with device and dtype where they are not the usual ones."""
    more = [str(row[name]) for name, usual in (("device", "cpu"), ("dtype", "float32")) if row.get(name, usual) != usual]
    return ", ".join([row["runtime"], f"batch {row['batch_size']}", *more])


def told_speedup(row: Mapping[str, Any]) -> str:
    """``1.31x of 1.54x that the MACs allow``, or that it was too noisy to tell."""
    value = "too noisy to tell" if row.get("speedup") is None else f"{row['speedup']:.2f}x"
    return value if row.get("macs_allow") is None else f"{value} of {row['macs_allow']:.2f}x that the MACs allow"


def _room_for(labels: Iterable[str]) -> float:
    """Pixels that labels in front of bars take."""
    return min(WIDTH / 2, 30 + 6.6 * max(map(len, labels), default=0))


def _interval(row: Mapping[str, Any]) -> list[float]:
    found = row.get("speedup_interval")
    return [float(number) for number in found if number is not None] if isinstance(found, list) else []


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    found = []
    for line in lines:
        value = line.get(key)
        value = value.get("reached") if isinstance(value, Mapping) else value
        if isinstance(value, int | float) and math.isfinite(value) and isinstance(line.get("epoch"), int | float):
            found.append((float(line["epoch"]), float(value)))
    return found


def _axis_of_counts(counts: Sequence[int]) -> tuple[list[float], tuple[float, str]]:
    unit = next((unit for unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if max(counts) >= unit[0]), (1.0, ""))
    return steps(0, max(counts) / unit[0], 5), unit


def _along(value: float, axis: Sequence[float], start: float, end: float) -> float:
    span = axis[-1] - axis[0]
    return start + (end - start) * ((value - axis[0]) / span if span else 0.5)


def _grid(
    drawing: Drawing,
    frame: tuple[float, float, float, float],
    across: Sequence[float],
    up: Sequence[float],
    across_title: str,
    up_title: str,
) -> None:
    left, right, top, bottom = frame
    for tick in up:
        y = _along(tick, up, bottom, top)
        drawing.line(left, y, right, y, "axis" if tick == up[0] else "rule")
        drawing.text(left - 6, y + 4, f"{tick:g}", "tick", "end")
    for tick in across:
        drawing.text(_along(tick, across, left, right), bottom + 18, f"{tick:g}", "tick", "middle")
    drawing.text((left + right) / 2, bottom + 38, across_title, "tick", "middle")
    if up_title:
        drawing.text(left, top - 4, up_title, "tick")


def _arrow(sizes: tuple[int, int] | None) -> str:
    return "gone" if sizes is None else f"{sizes[0]} to {sizes[1]}"
