"""Everything that a run needs, put together: images, network, teacher, optimizer, and who steers."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import attach, record_of
from chansurg.surgery.gating import gates
from chansurg.surgery.images.augmentation import Augmentation, augmentation
from chansurg.surgery.images.classified import MissingSplit, evaluation_transform, match_classes
from chansurg.surgery.images.library import LabelledImages, open_images
from chansurg.surgery.journal import Record
from chansurg.surgery.memory_format import to_channels_last
from chansurg.surgery.training.averaging import WeightAverage
from chansurg.surgery.training.budget import Budget
from chansurg.surgery.training.image_feed import ImageFeed
from chansurg.surgery.training.loop import Standing, Training
from chansurg.surgery.training.mixing import Mixing
from chansurg.surgery.training.objective import Objective
from chansurg.surgery.training.optimizers import build_optimizer, default_learning_rate
from chansurg.surgery.training.ordering import Course
from chansurg.surgery.training.processes import Processes
from chansurg.surgery.training.settings import TARGETS, Settings
from chansurg.surgery.training.suited import suited
from chansurg.surgery.training.teacher import Teacher, classifier_outputs

_VALIDATION = ("val", "valid", "validation")

log = logging.getLogger(__name__)


def open_splits(data: str | os.PathLike[str], preprocessing: Preprocessing) -> tuple[LabelledImages, LabelledImages | None]:
    """Training images, and those for validation where there are any.

    Raises:
        InputError: where there are no training images.
    """
    transform = evaluation_transform(preprocessing)
    training = open_images(data, split="train", transform=transform, whole=False)
    for split in _VALIDATION:
        try:
            return training, open_images(data, split=split, transform=transform, whole=False)
        except MissingSplit:
            continue
    return training, None


def with_data_classes(record: Record, model: nn.Module, training: LabelledImages, validation: LabelledImages | None) -> Record:
    """The record with the classes of the outputs; both splits are told which output each of their classes has.

    Raises:
        InputError: where network and data do not fit each other.
    """
    outputs = classifier_outputs(model, record.preprocessing.input_size, role="network")
    training.labels = match_classes(training.classes, record.class_names, outputs, where=training.where)
    by_name = record.class_names is not None and set(training.classes) <= set(record.class_names)
    names: Sequence[str] = record.class_names if by_name and record.class_names is not None else tuple(training.classes)
    if not by_name:
        known = "does not know its classes" if record.class_names is None else "knows its classes by other names"
        log.warning("The network %s: its outputs from 0 to %d are taken for %s, in this order.", known, outputs - 1, _in_short(names))
    if validation is not None:
        validation.labels = match_classes(validation.classes, names, outputs, where=validation.where)
    return replace(record, class_names=tuple(names))


def _in_short(names: Sequence[str]) -> str:
    shown = [*names[:3], "…", names[-1]] if len(names) > 5 else names
    return ", ".join(shown)


def network_to_train(model: nn.Module, settings: Settings) -> nn.Module:
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


def prepared(
    network: nn.Module,
    teacher: nn.Module | None,
    settings: Settings,
    course: Course,
    processes: Processes,
    splits: tuple[LabelledImages, LabelledImages | None],
    finished: Callable[[nn.Module, Mapping[str, Any]], nn.Module],
    progress: Callable[[Standing], None] | None,
) -> Training:
    """The run, with everything that it needs on its device.

    Raises:
        InputError: where settings do not fit each other, the network or the teacher.
    """
    record, accelerator = record_of(network), processes.accelerator
    images, validation = _feeds(*splits, record, settings, processes)
    network = network.to(processes.device)
    classes = len(record.class_names or ())
    half = torch.bfloat16 if settings.precision == "bf16" else torch.float16 if settings.precision == "fp16" else None
    shown_by = None if teacher is None else Teacher(copy.deepcopy(teacher), record, classes, device=processes.device, autocast=half)
    suits = suited(settings, record, is_taught=teacher is not None)
    peak = settings.lr if settings.lr is not None else suits.rate * default_learning_rate(settings.optimizer, course.images_a_step)
    if settings.sync_bn and processes.number > 1:
        network = attach(_synchronised(network, processes), record)
    objective = Objective(
        network,
        shown_by,
        label_smoothing=settings.label_smoothing,
        distill_logits=suits.distill_logits,
        temperature=settings.temperature,
        distill_blocks=suits.distill_blocks,
    )
    optimizer = build_optimizer(
        network,
        settings.optimizer,
        lr=peak,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        new=suits.new if suits.new_first else frozenset(),
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
        new_first=round(suits.new_first * course.steps_an_epoch) if any(group["new"] for group in optimizer.param_groups) else 0,
        processes=processes,
        images=images,
        validation=validation,
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
    if _is_as_small_as_wanted(record_of(network)) and (settled := gates(network)):
        for gate in settled.values():
            gate.released = torch.zeros_like(gate.mask)
        log.info("The network is as small as it was asked to be: nothing shrinks any more. A target (--target-macs) would go on.")
    return None


def _is_as_small_as_wanted(record: Record) -> bool:
    """Whether the network was sliced, or trained to a budget, since it was last converted."""
    for entry in reversed(record.journal):
        if entry.kind == "slice" or (entry.kind == "finetune" and "budget" in entry.results):
            return True
        if entry.kind == "convert":
            return False
    return False


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
