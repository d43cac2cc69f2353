"""``report``: networks, what was done to them and what came of it, as one HTML page that needs nothing but itself.

There is no script in it, and nothing is fetched. The same networks, folders and benchmarks give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from chansurg.surgery.delivery.report.sections import model_section, overview, speed_section
from chansurg.surgery.delivery.report.speeds import Speed, read_speed
from chansurg.surgery.delivery.report.style import STYLE
from chansurg.surgery.delivery.report.subject import Subject, gather
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.writing import check_target, would_be_lost, write_whole
from chansurg.surgery.opening import load

_COUNTED = "Written by chansurg. Counts are of one image; MACs are multiply-accumulates of convolutions, linear layers and matrix products."


def report(
    models: Sequence[str | os.PathLike[str] | nn.Module],
    output: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    speeds: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    title: str | None = None,
    overwrite: bool = True,
) -> Path:
    """Write one page about networks: counts, channels of every layer, journal, drift, training curves, accuracy, speed.

    >>> import chansurg
    >>> chansurg.report(["resnet50-pix.safetensors"], "report.html", speeds=["speed.json"])    # doctest: +SKIP

    Args:
        models: files or architectures' names, as :func:`chansurg.load` takes them, or networks.
        output: the page to write.
        names: what each of them is called; a file's name, or the architecture's, where left out. Where a name is a file's, training curves
            are looked for beside it.
        speeds: what ``bench --json`` printed, as files or documents. Each is joined to the model of the same file name.
        title: of the page.
        overwrite: replace an existing file, whatever it holds.

    Returns:
        The path of the page.

    Raises:
        InputError: where a model or a benchmark cannot be read, or the page would replace what it must not.
    """
    target = Path(output)
    check_target(target)
    if target.exists() and not overwrite:
        raise would_be_lost(target, "this would replace it")
    if not models or (names is not None and len(names) != len(models)):
        raise InputError(
            "There is no model to report on." if not models else "There are not as many names as models.",
            where="the models of a report",
            not_done="No report was written.",
            to_do="Name at least one model, and a name for each if for any.",
        )
    subjects = [_subject(model, None if names is None else names[number]) for number, model in enumerate(models)]
    text = page(subjects, [read_speed(source) for source in speeds], title=title)
    write_whole(target, lambda temporary: temporary.write_text(text, encoding="utf-8"), overwrite=overwrite)
    return target


def page(subjects: Sequence[Subject], speeds: Sequence[Speed], *, title: str | None = None) -> str:
    """The page's text.

    Args:
        subjects: in the order in which they are told.
        speeds: benchmarks; those that are of none of the subjects are told at the end.
        title: of the page.
    """
    headline = title or (subjects[0].name if len(subjects) == 1 else f"{len(subjects)} networks")
    used = [[speed for speed in speeds if speed.is_of(subject.name)] for subject in subjects]
    others = [speed for speed in speeds if not any(speed.is_of(subject.name) for subject in subjects)]
    links = [("overview", "Overview"), *((f"model-{number}", subject.name) for number, subject in enumerate(subjects, 1))]
    parts = [overview(subjects, speeds)]
    parts += [
        model_section(subject, found, f"model-{number}") for number, (subject, found) in enumerate(zip(subjects, used, strict=True), 1)
    ]
    if others:
        links.append(("speed", "Other timings"))
        parts.append(f'<section id="speed"><h2>Other timings</h2>{"".join(map(speed_section, others))}</section>')
    listed = "".join(f'<li><a href="#{place}">{escape(name)}</a></li>' for place, name in links)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(headline)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(headline)}</h1>
<p class="soft">What was done to {"it" if len(subjects) == 1 else "them"}, what it costs, and what came of it.</p>
<nav aria-label="Contents"><ul>{listed}</ul></nav></header>
<main>
{"".join(parts)}
</main>
<footer><p>{_COUNTED}</p></footer>
</body>
</html>
"""


def _subject(model: str | os.PathLike[str] | nn.Module, name: str | None) -> Subject:
    if isinstance(model, nn.Module):
        file = Path(name) if name is not None and Path(name).is_file() else None
        subject = gather(model, "", file)
        called = name or subject.record.file or str(subject.record.architecture or type(model).__name__)
    else:
        file = Path(model) if Path(model).is_file() else None
        subject = gather(load(model), "", file)
        called = name or str(model)
    return subject.called(Path(called).name if file is not None else called)
