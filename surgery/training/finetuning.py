"""Fine-tuning: everything a run needs is put together, the run carried out, and its network written."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.modelfile import save
from chansurg.surgery.files.provenance import attach, library_versions, record_of, refuse_wrapped
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.files.writing import would_be_lost
from chansurg.surgery.journal import Entry, Record
from chansurg.surgery.memory_format import to_channels_last
from chansurg.surgery.opening import load
from chansurg.surgery.training.augmentation import Augmentation, augmentation
from chansurg.surgery.training.averaging import WeightAverage
from chansurg.surgery.training.budget import Budget
from chansurg.surgery.training.data import evaluation_transform, match_classes
from chansurg.surgery.training.image_feed import ImageFeed
from chansurg.surgery.training.library_images import LabelledImages, open_images
from chansurg.surgery.training.loop import Standing, Training
from chansurg.surgery.training.mixing import Mixing
from chansurg.surgery.training.objective import Objective
from chansurg.surgery.training.optimizers import build_optimizer, default_learning_rate
from chansurg.surgery.training.ordering import Course
from chansurg.surgery.training.processes import Processes
from chansurg.surgery.training.run_folder import RunFolder
from chansurg.surgery.training.settings import TARGETS, Settings, settings_from
from chansurg.surgery.training.teacher import Teacher, classifier_outputs

VERSION = 1
"""Of the journal's entries."""

_VALIDATION = ("val", "valid", "validation")


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
    training_images, validation_images = _open_splits(data, record_of(model).preprocessing)
    record = _with_classes(record_of(model), model, training_images, validation_images)
    if settings.keep == "best" and validation_images is None:
        raise InputError(
            "Without images for validation there is no best epoch.",
            where="option --keep",
            not_done="Nothing was trained.",
            to_do="Add a folder val/ to the data, or pass --keep last.",
        )
    network = attach(_network_to_train(model, settings), record)
    before = weights_digest(model)
    taught_by = load(teacher) if isinstance(teacher, str | os.PathLike) else teacher
    digests = {"weights": before, "teacher": None if taught_by is None else weights_digest(taught_by)}

    def finished(trained: nn.Module, line: Mapping[str, Any]) -> nn.Module:
        copied = copy.deepcopy(model).eval()
        copied.load_state_dict(trained.state_dict())
        results = _results(line, settings, course, record)
        entry = Entry(
            recipe="finetune",
            version=VERSION,
            options={**settings.with_effect(), "teacher": digests["teacher"]},
            seed=settings.seed,
            edits=(),
            libraries=library_versions(copied),
            weights=weights_digest(copied),
            kind="finetune",
            results=results,
        )
        return attach(copied, record.with_entry(entry, before))

    course = Course.of(settings, len(training_images), processes=processes.number, process=processes.index)
    feeds = _feeds(training_images, validation_images, record, settings, processes)
    training = _prepared(network, taught_by, settings, course, processes, feeds, finished, progress)
    training.rate(0)
    folder = None if output is None else RunFolder(output)
    if folder is not None:
        if output is not None and output.exists() and not folder.exists() and not overwrite:
            raise would_be_lost(output, "no run of its own has written it")
        same = {
            "model": _digest(before, json.dumps(record.as_json(), sort_keys=True)),
            "training images": training_images.listing(),
            "validation images": None if validation_images is None else validation_images.listing(),
            "teacher": digests["teacher"],
            "processes": processes.number,
            "device type": processes.device.type,
        }
        identity = _identity(settings, same, data, record_of(model), training_images, validation_images)

        def begin() -> Any:
            if restart or not folder.exists():
                _try_writing(finished(network, {}), folder)
            return folder.open(identity, restart=restart)

        checkpoint = processes.first(begin)
        training.folder = folder
        if checkpoint is not None:
            training.restore(checkpoint)
    began = training.step
    try:
        training.run()
    finally:
        training.objective.close()
        if folder is not None:
            folder.close()
    kept, line = _kept(training, settings)
    final = finished(kept, line)
    results = record_of(final).journal[-1].results
    written = folder is not None and processes.first(lambda: folder.finish(final, results))
    return Outcome(final, results, training.step - began, began, written)


def _open_splits(data: str | os.PathLike[str], preprocessing: Any) -> tuple[LabelledImages, LabelledImages | None]:
    """Training images, and those for validation where there are any.

    Raises:
        InputError: where there are no training images.
    """
    transform = evaluation_transform(preprocessing)
    training = open_images(data, split="train", transform=transform, whole=False)
    missing: InputError | None = None
    for split in _VALIDATION:
        try:
            return training, open_images(data, split=split, transform=transform, whole=False)
        except InputError as error:
            missing = missing or error
            if "holds no image" in error.what:
                raise
    return training, None


def _with_classes(record: Record, model: nn.Module, training: LabelledImages, validation: LabelledImages | None) -> Record:
    """The record with the classes of the outputs; both splits are told which output each of their classes has.

    Raises:
        InputError: where network and data do not fit each other.
    """
    outputs = classifier_outputs(model, record.preprocessing.input_size, role="network")
    training.labels = match_classes(training.classes, record.class_names, outputs, where=training.where)
    by_name = record.class_names is not None and set(training.classes) <= set(record.class_names)
    names: Sequence[str] = record.class_names if by_name and record.class_names is not None else tuple(training.classes)
    if validation is not None:
        validation.labels = match_classes(validation.classes, names, outputs, where=validation.where)
    return replace(record, class_names=tuple(names))


def _network_to_train(model: nn.Module, settings: Settings) -> nn.Module:
    """A copy in the modes it is trained in."""
    network = copy.deepcopy(model)
    if not model.training:
        network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if frozen or (settings.eval_bn and isinstance(module, nn.modules.batchnorm._BatchNorm)):
            module.eval()
    if settings.channels_last:
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.data = to_channels_last(tensor.data)
    return network


def _feeds(
    training: LabelledImages, validation: LabelledImages | None, record: Record, settings: Settings, processes: Processes
) -> tuple[ImageFeed, ImageFeed | None]:
    preprocessing = record.preprocessing
    varied = augmentation(settings.augment, preprocessing)
    common: dict[str, Any] = {"device": processes.device, "workers": settings.workers}
    feed = ImageFeed(training, varied, preprocessing, seed=settings.seed, **common)
    return feed, None if validation is None else ImageFeed(validation, Augmentation(preprocessing), preprocessing, **common)


def _prepared(
    network: nn.Module,
    teacher: nn.Module | None,
    settings: Settings,
    course: Course,
    processes: Processes,
    feeds: tuple[ImageFeed, ImageFeed | None],
    finished: Callable[[nn.Module, Mapping[str, Any]], nn.Module],
    progress: Callable[[Standing], None] | None,
) -> Training:
    """The run, with everything that it needs on its device.

    Raises:
        InputError: where settings do not fit each other, the network or the teacher.
    """
    record, accelerator = record_of(network), processes.accelerator
    network = network.to(processes.device)
    classes = len(record.class_names or ())
    half = torch.bfloat16 if settings.precision == "bf16" else torch.float16 if settings.precision == "fp16" else None
    shown_by = None if teacher is None else Teacher(copy.deepcopy(teacher), record, classes, device=processes.device, autocast=half)
    peak = settings.lr if settings.lr is not None else default_learning_rate(settings.optimizer, course.images_a_step)
    if settings.sync_bn and processes.number > 1:
        network = attach(_synchronised(network, processes), record)
    logits = settings.distill_logits if settings.distill_logits is not None else float(teacher is not None)
    objective = Objective(
        network,
        shown_by,
        label_smoothing=settings.label_smoothing,
        distill_logits=logits,
        temperature=settings.temperature,
        distill_blocks=settings.distill_blocks,
    )
    optimizer = build_optimizer(
        network,
        settings.optimizer,
        lr=peak,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )
    average = None if settings.ema is None else WeightAverage(network, settings.ema)
    mixes = settings.mixup > 0 or settings.cutmix > 0
    mixing = Mixing(classes, mixup=settings.mixup, cutmix=settings.cutmix, seed=settings.seed) if mixes else None
    steering = _steering(network, settings)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    # Accelerate puts autocast around the network for good. Here it is put around each training step, so that validation runs in float32.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    trained: nn.Module = torch.compile(wrapped) if settings.compile else wrapped  # type: ignore[assignment]  # a module again
    objective.model = trained
    return Training(
        network=network,
        trained=trained,
        settings=settings,
        course=course,
        peak=peak,
        processes=processes,
        images=feeds[0],
        validation=feeds[1],
        objective=objective,
        optimizer=optimizer,
        mixing=mixing,
        average=average,
        steering=steering,
        folder=None,
        finished=finished,
        progress=progress,
    )


def _steering(network: nn.Module, settings: Settings) -> Budget | None:
    """Who steers towards the target, where there is one."""
    for name in TARGETS:
        target = getattr(settings, name)
        if target is not None:
            return Budget(network, target, name.removeprefix("target_"))
    return None


def _kept(training: Training, settings: Settings) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network that the output gets, and the metrics of its epoch."""
    if settings.keep == "best" and training.folder is not None:
        file, line = training.folder.read_best()
        training.result.load_state_dict(load_file(file), strict=False)  # a tied tensor is stored under one of its names
        return training.result, line
    return training.result, training.metrics


def _synchronised(network: nn.Module, processes: Processes) -> nn.Module:
    """The network with batch norms that take their statistics over all processes.

    Raises:
        InputError: on a CPU, where PyTorch has none.
    """
    if processes.device.type == "cpu":
        raise InputError(
            "PyTorch's synchronised batch norms run on GPUs only.",
            where="option --sync-bn",
            not_done="Nothing was trained.",
            to_do="Leave it out, or pass --eval-bn.",
        )
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return synchronised


def _results(line: Mapping[str, Any], settings: Settings, course: Course, record: Record) -> dict[str, Any]:
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


def _try_writing(network: nn.Module, folder: RunFolder) -> None:
    """See that the network can be written before hours are spent on it.

    Raises:
        InputError: where the output's place will not do.
        Refusal: where no file could give the network back.
    """
    trial = folder.output.with_name(f".{folder.output.name}.trial")
    try:
        save(network, trial)
    finally:
        trial.unlink(missing_ok=True)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The caller's random state is left as it was."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
