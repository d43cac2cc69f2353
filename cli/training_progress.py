"""How a training run is shown while it goes on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn

from chansurg.cli.reporting import Report

if TYPE_CHECKING:
    from chansurg.surgery.training.loop import Standing

_SILENCE = 60.0
"""Seconds after which a line says that the run still goes on, where there is no bar."""


@contextmanager
def training_progress(report: Report) -> Iterator[Callable[[Standing], None] | None]:
    """What :func:`chansurg.finetune` tells of its progress goes to stderr: each epoch's line, and what happens in between."""
    if report.quiet:
        yield None
    elif report.err.is_terminal:
        columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.fields[told]}"))
        with Progress(*columns, console=report.err, transient=True) as bar:
            task = bar.add_task("training", total=None, epoch="", told="")

            def draw(now: Standing) -> None:
                bar.update(task, completed=now.step, total=now.steps, epoch=f"{now.epoch}/{now.epochs}", told=_between(now))
                if now.metrics is not None:
                    bar.console.print(_line(now.epochs, now.metrics), soft_wrap=True)

            yield draw
    else:
        spoken = time.monotonic()

        def line(now: Standing) -> None:
            nonlocal spoken
            if now.metrics is not None:
                report.err.print(_line(now.epochs, now.metrics), soft_wrap=True)
            elif time.monotonic() - spoken > _SILENCE:
                report.err.print(f"epoch {now.epoch}/{now.epochs}: step {now.step} of {now.steps}, {_between(now)}", soft_wrap=True)
            else:
                return
            spoken = time.monotonic()

        yield line


def _between(now: Standing) -> str:
    return f"loss {now.loss:.3f}  top-1 {now.top1:.1f} %  {now.images_per_second:,.0f} images/s  {_duration(now.seconds_left)} left"


def _line(epochs: int, metrics: Any) -> str:
    parts = [f"epoch {metrics['epoch']}/{epochs}", f"loss {metrics['train_loss']:.4f}", f"top-1 {metrics['train_top1']:.2f} %"]
    if "val_top1" in metrics:
        parts.append(f"val loss {metrics['val_loss']:.4f}  val top-1 {metrics['val_top1']:.2f} %")
    if "budget" in metrics:
        parts.append(f"{metrics['budget']['quantity'].replace('_', ' ')} {metrics['budget']['reached']:.3f}")
    parts.append(f"lr {metrics['learning_rate']:.2g}  {metrics['images_per_second']:,.0f} images/s")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
