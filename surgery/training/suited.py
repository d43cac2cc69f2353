"""What suits a run where its user said nothing: trained weights want a gentler rate than random ones, and each recipe has its own needs."""

from __future__ import annotations

from dataclasses import dataclass

from chansurg.surgery.errors import InputError
from chansurg.surgery.journal import Record
from chansurg.surgery.recipe import Recovery, find_recipe
from chansurg.surgery.training.settings import Settings

_FRESH = Recovery(learning_rate=1.0)
_TRAINED = Recovery()


@dataclass(frozen=True)
class Suited:
    """The settings that were left to the network.

    Args:
        rate: the highest learning rate, as a share of what the optimizer was published with.
        distill_logits: weight of the teacher's logits.
        distill_blocks: weight of the teacher's block outputs.
        new_first: epochs in which only ``new`` is trained.
        new: tensors that started anew in the conversions since the network was last trained, by their names in its state dict; parameters
            and buffers both.
    """

    rate: float
    distill_logits: float
    distill_blocks: float
    new_first: float
    new: frozenset[str]


def suited(settings: Settings, record: Record, *, is_taught: bool) -> Suited:
    """What to take for the settings that are ``None``.

    A network converted by recipes takes what its last one advises (:class:`~chansurg.surgery.recipe.Recovery`), one read from a file a
    lower rate, and any other what training from random weights wants.

    Args:
        settings: as the user gave them.
        record: of the network.
        is_taught: whether there is a teacher.

    Raises:
        InputError: where only new layers shall be trained, and there is none.
    """
    converted = [entry for entry in record.journal if entry.kind == "convert"]
    advice = find_recipe(converted[-1].recipe).recovery if converted else _TRAINED if record.file is not None else _FRESH
    is_calibrated = bool(converted) and "calibration" in converted[-1].results
    since = max((number for number, entry in enumerate(record.journal) if entry.kind == "finetune"), default=-1)
    new = frozenset(name for entry in record.journal[since + 1 :] for name in entry.new)
    if settings.new_first and not new:
        raise InputError(
            "The network has no layer that started anew since it was last trained.",
            where="option --new-first",
            not_done="Nothing was trained.",
            to_do="Leave it out.",
        )
    return Suited(
        rate=advice.calibrated_rate if is_calibrated and advice.calibrated_rate is not None else advice.learning_rate,
        distill_logits=float(is_taught) if settings.distill_logits is None else settings.distill_logits,
        distill_blocks=(advice.distill_blocks if is_taught else 0.0) if settings.distill_blocks is None else settings.distill_blocks,
        new_first=(advice.new_first * settings.epochs if new else 0.0) if settings.new_first is None else settings.new_first,
        new=new,
    )
