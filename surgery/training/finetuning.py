"""Fine-tuning: everything a run needs is put together, the run carried out, and its network written."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.modelfile import save
from chansurg.surgery.files.provenance import attach, library_versions, record_of, refuse_wrapped
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.files.writing import would_be_lost
from chansurg.surgery.images.library import LabelledImages
from chansurg.surgery.journal import Entry, Record
from chansurg.surgery.opening import load
from chansurg.surgery.training.checkpoints import Checkpoint
from chansurg.surgery.training.loop import Standing, Training
from chansurg.surgery.training.ordering import Course
from chansurg.surgery.training.preparation import network_to_train, open_splits, prepared, with_data_classes
from chansurg.surgery.training.processes import Processes
from chansurg.surgery.training.run_folder import RunFolder
from chansurg.surgery.training.settings import Settings, settings_from

log = logging.getLogger(__name__)

VERSION = 1
"""Of the journal's entries."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        network: the fine-tuned network, in eval mode, with its record.
        results: what was reached, as the journal has it.
        trained_steps: optimizer steps taken this time; 0 where the run was finished before.
        began_at: the step it went on from.
        written: whether the output was written this time.
    """

    network: nn.Module
    results: Mapping[str, Any]
    trained_steps: int
    began_at: int
    written: bool


def finetune(
    model: nn.Module,
    data: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    teacher: nn.Module | str | os.PathLike[str] | None = None,
    restart: bool = False,
    overwrite: bool = True,
    progress: Callable[[Standing], None] | None = None,
    **settings: Any,
) -> nn.Module:
    """Train a classifier, converted or not, on labelled images.

    With ``output``, the run is kept in ``OUTPUT.run/``, and the same call again goes on where it stopped. On CPU with the same number of
    threads it then ends with the same weights, bit for bit, as one that was never interrupted. What is drawn at random is drawn from
    PyTorch's generators, seeded anew for every step; a layer that draws from elsewhere is outside of that.

    A network given in train mode keeps the modes that its modules have; one in eval mode is put into train mode. Either way modules whose
    parameters are all frozen stay in eval mode.

    >>> import chansurg                                                                            # doctest: +SKIP
    >>> pix = chansurg.convert(resnet20, "pix")                                                    # doctest: +SKIP
    >>> tuned = chansurg.finetune(pix, "cifar10.zip", epochs=30, output="tuned.safetensors")       # doctest: +SKIP

    Args:
        model: a network from ``[B, C, H, W]`` to ``[B, classes]``; it is not changed.
        data: class folders under ``train`` and ``val``, or a zip of that, or a data set of torchvision's (``cifar10:FOLDER``). Without
            ``val`` nothing is validated.
        output: the model file to write; ``None`` keeps nothing on disk.
        teacher: a network to distil from, or anything that :func:`chansurg.load` takes.
        restart: begin anew although there is a run to go on with.
        overwrite: replace an existing ``output`` that no run of its own has written.
        progress: called now and then with where the run stands.
        settings: the fields of :class:`~chansurg.surgery.training.settings.Settings`.

    Returns:
        A new network in eval mode, with one more journal entry.

    Raises:
        InputError: where data, network, teacher and settings do not fit each other, or a run was begun with other settings.
        Refusal: where the loss stops being a number, or the disk is full.
        KeyboardInterrupt: where it was interrupted; the state is saved then.
    """
    target = None if output is None else Path(output)
    return carry_out(
        model,
        data,
        settings_from(settings),
        output=target,
        teacher=teacher,
        restart=restart,
        overwrite=overwrite,
        progress=progress,
    ).network


def carry_out(
    model: nn.Module,
    data: str | os.PathLike[str],
    settings: Settings,
    *,
    output: Path | None = None,
    teacher: nn.Module | str | os.PathLike[str] | None = None,
    restart: bool = False,
    overwrite: bool = True,
    progress: Callable[[Standing], None] | None = None,
) -> Outcome:
    """:func:`finetune`, with what the run came to beside the network."""
    refuse_wrapped(model)
    with _own_randomness():
        return _carry_out(model, data, settings, Processes(settings), output, teacher, restart, overwrite, progress)


def _carry_out(
    model: nn.Module,
    data: str | os.PathLike[str],
    settings: Settings,
    processes: Processes,
    output: Path | None,
    teacher: nn.Module | str | os.PathLike[str] | None,
    restart: bool,
    overwrite: bool,
    progress: Callable[[Standing], None] | None,
) -> Outcome:
    training_images, validation_images = open_splits(data, record_of(model).preprocessing)
    record = with_data_classes(record_of(model), model, training_images, validation_images)
    if settings.keep == "best" and validation_images is None:
        raise InputError(
            "Without images for validation there is no best epoch.",
            where="option --keep",
            not_done="Nothing was trained.",
            to_do="Add a folder val/ to the data, or pass --keep last.",
        )
    network = attach(network_to_train(model, settings), record)
    taught_by = load(teacher) if isinstance(teacher, str | os.PathLike) else teacher
    taught = None if taught_by is None else weights_digest(taught_by)
    course = Course.of(settings, len(training_images), processes=processes.number, process=processes.index)

    def finished(trained: nn.Module, line: Mapping[str, Any]) -> nn.Module:
        return _finished(model, trained, record, {**settings.with_effect(), "teacher": taught}, _results(line, settings, course))

    training = prepared(network, taught_by, settings, course, processes, (training_images, validation_images), finished, progress)
    training.rate(0)
    training.folder = folder = None if output is None else RunFolder(output)
    with nullcontext() if folder is None else closing(folder):
        if folder is not None:
            same = {
                "model": _digest(weights_digest(model), json.dumps(record.as_json(), sort_keys=True)),
                "training images": training_images.listing(),
                "validation images": None if validation_images is None else validation_images.listing(),
                "teacher": taught,
                "processes": processes.number,
                "device type": processes.device.type,
            }
            identity = _identity(settings, same, data, record_of(model), training_images, validation_images)
            checkpoint = processes.first(lambda: _begun(training, identity, restart=restart, overwrite=overwrite))
            if checkpoint is not None:
                training.restore(checkpoint)
        began = training.step
        try:
            training.run()
        finally:
            training.objective.close()
        kept, line = _kept(training, settings)
        final = finished(kept, line)
        results = record_of(final).journal[-1].results
        written = folder is not None and processes.first(lambda: folder.finish(final, results))
    budget = results.get("budget")
    if budget is not None and not budget["within_tolerance"] and processes.main:
        missed = "The target was missed: %.3f of the original, not %g; the channels come in steps as large as that."
        log.warning(missed, budget["reached"], budget["target"])
    return Outcome(final, results, training.step - began, began, written)


def _begun(training: Training, identity: Mapping[str, Any], *, restart: bool, overwrite: bool) -> Checkpoint | None:
    """The state to go on from, once it is sure that the network can be written: not only after hours have been spent on it.

    Raises:
        InputError: where the output's place will not do, or a run was begun there with other settings.
        Refusal: where no file could give the network back.
    """
    folder = training.folder
    assert folder is not None
    if restart or not folder.exists():
        if folder.output.exists() and not overwrite and not folder.exists():
            raise would_be_lost(folder.output, "no run of its own has written it")
        trial = folder.output.with_name(f".{folder.output.name}.trial")
        try:
            save(training.finished(training.network, {}), trial)
        finally:
            trial.unlink(missing_ok=True)
    return folder.open(identity, restart=restart)


def _finished(model: nn.Module, trained: nn.Module, record: Record, options: Mapping[str, Any], results: Mapping[str, Any]) -> nn.Module:
    """The network as it was given, with the weights of the trained one, and one more journal entry."""
    network = copy.deepcopy(model).eval()
    network.load_state_dict(trained.state_dict())
    entry = Entry(
        recipe="finetune",
        version=VERSION,
        options=options,
        seed=options["seed"],
        edits=(),
        libraries=library_versions(network),
        weights=weights_digest(network),
        kind="finetune",
        results=results,
    )
    return attach(network, record.with_entry(entry, weights_digest(model)))


def _kept(training: Training, settings: Settings) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network that the output gets, and the metrics of its epoch."""
    if settings.keep == "best" and training.best is not None:
        if training.folder is not None:
            training.result.load_state_dict(training.folder.read_best(), strict=False)  # a tied tensor is stored under one of its names
        else:
            training.result.load_state_dict(training.best_weights)
        return training.result, training.best
    return training.result, training.metrics


def _results(line: Mapping[str, Any], settings: Settings, course: Course) -> dict[str, Any]:
    """What the journal says was reached: no clock times, so that the same run gives the same file."""
    timed = ("seconds", "images_per_second")
    return {
        "kept": settings.keep,
        "epochs": -(-course.steps // course.steps_an_epoch),
        "steps": course.steps,
        "images": course.images,
        **{key: value for key, value in line.items() if key not in timed},
    }


def _identity(
    settings: Settings,
    same: Mapping[str, Any],
    data: str | os.PathLike[str],
    record: Record,
    training: LabelledImages,
    validation: LabelledImages | None,
) -> dict[str, Any]:
    from importlib.metadata import version

    packages = ("chansurg", "torch", "torchvision", "accelerate", "safetensors", "numpy", "pillow")
    return {
        "command": sys.argv,
        "settings": settings.as_json(),
        "same": dict(same),
        "model": {
            "file": record.file,
            "sha256": record.sha256,
            "architecture": None if record.architecture is None else record.architecture.as_json(),
        },
        "data": {
            "path": os.path.abspath(data),
            "training": len(training),
            "validation": 0 if validation is None else len(validation),
            "classes": training.classes,
        },
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in packages}},
        "threads": torch.get_num_threads(),
    }


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The caller's random state is left as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
