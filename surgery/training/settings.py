"""Everything that can be set about a training run, as plain data with its help text. No torch is imported here.

The command line and the documentation are made from :class:`Settings`; a run folder keeps them, and a run is only continued under those
it was begun with.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chansurg.surgery.errors import InputError
from chansurg.surgery.recipe import flag, option

PRECISIONS = ("fp32", "bf16", "fp16")
AUGMENTATIONS = ("cifar", "imagenet", "none")
KEEPS = ("last", "best")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Raises:
        InputError: where a value is out of range or of another type, or two settings exclude each other.
    """

    epochs: int = option(30, "Passes over the training images.", metavar="N")
    batch_size: int = option(128, "Images a batch, over all processes together.", metavar="N")
    accumulate: int = option(1, "Batches whose gradients are averaged for one optimizer step.", metavar="N")
    seed: int = option(0, "Seed of order, augmentation, dropout and fresh weights.", metavar="N")

    optimizer: str = option("sgd", "sgd, adamw, or one of timm's: lamb, lars, lion, adan, adopt, nadamw, rmsproptf.", metavar="NAME")
    lr: float | None = option(
        None,
        "Highest learning rate. Left out: the optimizer's published one, scaled to the batch; less where the weights were trained.",
        metavar="X",
    )
    weight_decay: float = option(1e-4, "Weight decay; norms and biases have none.", metavar="X")
    momentum: float = option(0.9, "Momentum, for sgd, lars and rmsproptf.", metavar="X")
    nesterov: bool = option(True, "Nesterov momentum, for sgd.")
    clip_norm: float | None = option(None, "Scale gradients down to this norm where they are longer.", metavar="X")

    schedule: str = option("cosine", "How the learning rate falls.", choices=("cosine", "step"))
    new_first: float | None = option(
        None, "Epochs at the start in which only layers that a conversion left untrained learn. Left out: as suits its recipe.", metavar="X"
    )
    warmup_epochs: float = option(0.0, "Epochs over which the learning rate rises.", metavar="X")
    milestones: str = option("", "For --schedule step: epochs at which it is multiplied by --gamma, as 15,25.", metavar="E,E")
    gamma: float = option(0.1, "For --schedule step: the factor.", metavar="X")
    floor_lr: float = option(0.0, "Learning rate that the schedule does not go below.", metavar="X")

    label_smoothing: float = option(0.0, "Share of each target that is spread over all classes.", metavar="X")
    mixup: float = option(0.0, "Alpha of MixUp; 0 is none.", metavar="X")
    cutmix: float = option(0.0, "Alpha of CutMix; 0 is none.", metavar="X")
    ema: float | None = option(None, "Decay of a moving average of the weights, as 0.999; the average is what OUT gets.", metavar="X")

    distill_logits: float | None = option(
        None, "Weight of the teacher's logits in the loss. Left out: 1 where there is a --teacher.", metavar="X"
    )
    temperature: float = option(2.0, "Temperature of the logits' distillation.", metavar="X")
    distill_blocks: float | None = option(
        None, "Weight of the teacher's block outputs in the loss. Left out: as suits the recipe.", metavar="X"
    )

    target_macs: float | None = option(None, "Steer towards this share of the original network's MACs, as 0.45.", metavar="X")
    target_params: float | None = option(None, "The same for parameters.", metavar="X")
    target_memory_access: float | None = option(None, "The same for memory access.", metavar="X")

    augment: str | None = option(
        None, "Augmentation of training images. Left out: cifar for inputs up to 64 pixels, else imagenet.", choices=AUGMENTATIONS
    )
    eval_bn: bool = option(False, "Keep batch norms in eval mode: their statistics stay as they are.")
    sync_bn: bool = option(False, "Batch norms take their statistics over all processes.")
    precision: str = option("fp32", "Arithmetic of the forward pass; weights stay in float32.", choices=PRECISIONS)
    device: str = option("auto", "Where to train; auto is cuda where there is one.", choices=DEVICES)
    channels_last: bool = option(False, "Keep images and weights in channels_last order, often faster.")
    compile: bool = option(False, "Compile the network with torch.compile.")

    keep: str = option("last", "Which weights OUT gets: the last, or those of the best epoch on val.", choices=KEEPS)
    val_every: int = option(1, "Epochs between validations; the last epoch is always validated.", metavar="N")
    max_steps: int | None = option(None, "Stop after this many optimizer steps, to try something out.", metavar="N")
    workers: int | None = option(
        None, "Processes that decode images. Left out: one a processor, at most 8; none where images are kept in memory.", metavar="N"
    )
    checkpoint_minutes: float = option(10.0, "Minutes between checkpoints within an epoch; there is one after each epoch.", metavar="X")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_form(field)
        for names, holds, form in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise _bad(name, value, form)
        self._check_together()

    def _check_form(self, field: dataclasses.Field[Any]) -> None:
        value: Any = getattr(self, field.name)
        wanted = kind_of(field)
        if value is None and optional(field):
            return
        if wanted is float and type(value) is int:
            object.__setattr__(self, field.name, float(value))
            value = float(value)
        if type(value) is not wanted or (isinstance(value, float) and not math.isfinite(value)):
            raise _bad(field.name, value, f"a {_KINDS[wanted]}")
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise _bad(field.name, value, f"one of {', '.join(choices)}")

    def _check_together(self) -> None:
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        if len(targets) > 1:
            raise InputError(
                f"{' and '.join(map(flag, targets))} are two targets, and a run steers towards one.",
                where=f"options {', '.join(map(flag, targets))}",
                not_done="Nothing was trained.",
                to_do="Pass one of them.",
            )
        if self.milestone_epochs and self.schedule != "step":
            raise InputError(
                f"--milestones do nothing under --schedule {self.schedule}.",
                where="option --milestones",
                not_done="Nothing was trained.",
                to_do="Pass --schedule step as well, or leave them out.",
            )

    @property
    def milestone_epochs(self) -> tuple[float, ...]:
        """The epochs of ``milestones``, ascending."""
        try:
            return tuple(sorted(float(part) for part in self.milestones.split(",") if part.strip()))
        except ValueError:
            raise _bad("milestones", self.milestones, "epochs with commas between them, as 15,25") from None

    def as_json(self) -> dict[str, Any]:
        """Every setting's value."""
        return dataclasses.asdict(self)

    def with_effect(self) -> dict[str, Any]:
        """The settings that results depend on."""
        return {name: value for name, value in self.as_json().items() if name not in WITHOUT_EFFECT}


TARGETS = ("target_macs", "target_params", "target_memory_access")
WITHOUT_EFFECT = ("workers", "checkpoint_minutes")
"""Settings that a run may be continued without: no result depends on them."""

_KINDS: Mapping[type, str] = {int: "whole number", float: "number", str: "text", bool: "true or false"}
_RANGES: tuple[tuple[tuple[str, ...], Any, str], ...] = (
    (("epochs", "batch_size", "accumulate", "val_every", "max_steps"), lambda value: value >= 1, "a whole number from 1"),
    (("workers", "seed"), lambda value: value >= 0, "a whole number from 0"),
    (("lr", "clip_norm", "temperature", "gamma"), lambda value: value > 0, "a number above 0"),
    (
        (
            "weight_decay",
            "mixup",
            "cutmix",
            "warmup_epochs",
            "new_first",
            "floor_lr",
            "distill_logits",
            "distill_blocks",
            "checkpoint_minutes",
        ),
        lambda value: value >= 0,
        "a number from 0",
    ),
    (("momentum", "label_smoothing", "ema"), lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    (TARGETS, lambda value: 0 < value <= 1, "a share above 0, at most 1"),
)


def kind_of(field: dataclasses.Field[Any]) -> type:
    """The type of a setting's value, apart from ``None``."""
    hint = typing.get_type_hints(Settings)[field.name]
    inner = [part for part in typing.get_args(hint) if part is not types.NoneType] or [hint]
    kind: type = inner[0]
    return kind


def optional(field: dataclasses.Field[Any]) -> bool:
    """Whether a setting may be ``None``."""
    return types.NoneType in typing.get_args(typing.get_type_hints(Settings)[field.name])


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from keyword arguments.

    Raises:
        InputError: for a name that is no setting, or a value out of range.
    """
    known = {field.name for field in dataclasses.fields(Settings)}
    for name in values:
        if name not in known:
            raise InputError(
                f"There is no setting {name!r}.",
                where=f"chansurg.finetune({name}=…)",
                not_done="Nothing was trained.",
                to_do=f"The settings are: {', '.join(sorted(known))}.",
            )
    return Settings(**values)


def _bad(name: str, value: object, form: str) -> InputError:
    return InputError(f"{value!r} is not {form}.", where=f"option {flag(name)}", not_done="Nothing was trained.", to_do=f"Pass {form}.")
