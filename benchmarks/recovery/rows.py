"""The rows of the benchmark: what is fine-tuned, and what is made of it afterwards. A new recipe is one more :class:`Row` in ``ROWS``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import chansurg
from benchmarks.recovery.pruning import prune
from chansurg.surgery.images.classified import ClassifiedImages, evaluation_transform


@dataclass(frozen=True)
class Subject:
    """What a row is made from.

    Args:
        original: the trained network.
        data: the images.
        seed: of the run.
        share: the share of the original's multiply-accumulates to aim at.
        shrink: the share of channels that PCS may let go of at each site, as a text.
        samples: training images, without their labels, that conversions are calibrated with.
    """

    original: nn.Module
    data: Path
    seed: int
    share: float
    shrink: str
    samples: int

    def converted(self, recipe: str, **options: Any) -> nn.Module:
        """The original, converted and calibrated."""
        return chansurg.convert(self.original, recipe, calibrate=self.data, samples=self.samples, seed=self.seed, **options)

    def uncalibrated(self, recipe: str, **options: Any) -> nn.Module:
        """The original, converted with nothing known but its weights."""
        return chansurg.convert(self.original, recipe, seed=self.seed, **options)

    def fresh(self) -> nn.Module:
        """The same architecture with random weights."""
        torch.manual_seed(self.seed)
        return chansurg.load(str(chansurg.record_of(self.original).architecture))

    def batches(self, count: int = 10, batch_size: int = 100) -> Iterator[tuple[Tensor, Tensor]]:
        """Some training images, as in evaluation."""
        images = ClassifiedImages(self.data, split="train", transform=evaluation_transform(chansurg.record_of(self.original).preprocessing))
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed)).tolist()
        for start in range(0, count * batch_size, batch_size):
            pairs = [images[index] for index in order[start : start + batch_size]]
            yield torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Row:
    """One way to a smaller network.

    Args:
        title: what the table calls it.
        prepare: the network to be fine-tuned.
        finish: what is made of the fine-tuned network.
        steered: whether fine-tuning steers towards the share of multiply-accumulates.
        training: the row whose fine-tuned network this one takes; empty for its own.
        uncalibrated: the network as it would be without calibration, where that makes a difference.
        longer: how many times the epochs of the other rows it is trained for.
        settings: of the training run, beside those that all rows share.
    """

    title: str
    prepare: Callable[[Subject], nn.Module]
    finish: Callable[[nn.Module], nn.Module] = _as_it_is
    steered: bool = False
    training: str = ""
    uncalibrated: Callable[[Subject], nn.Module] | None = None
    longer: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


def _pcs(subject: Subject, network: nn.Module) -> nn.Module:
    return chansurg.convert(network, "pcs", shrink=subject.shrink)


def _sliced(network: nn.Module) -> nn.Module:
    return chansurg.slice(network)


def _frozen(network: nn.Module) -> nn.Module:
    return chansurg.slice(network, freeze_salience=True)


_RANDOM_RATE: Mapping[str, Any] = {"lr": 0.05}
"""What SGD was published with for training from random weights, for batches of 128."""


def _rows_of(name: str, title: str, recipe: str, **options: Any) -> dict[str, Row]:
    """A recipe beside the same architecture from random weights, and the original pruned to the same multiply-accumulates."""

    def share(subject: Subject) -> float:
        return chansurg.count(subject.uncalibrated(recipe, **options)).macs / chansurg.count(subject.original).macs

    return {
        name: Row(
            title,
            lambda subject: subject.converted(recipe, **options),
            uncalibrated=lambda subject: subject.uncalibrated(recipe, **options),
        ),
        f"{name}-random": Row(
            f"{title} from random weights, 4 times the epochs",
            lambda subject: chansurg.convert(subject.fresh(), recipe, **options),
            longer=4,
            settings=_RANDOM_RATE,
        ),
        f"{name}-taylor": Row(
            f"Taylor pruning to the MACs of {title}", lambda subject: prune(subject.original, "taylor", share(subject), subject.batches())
        ),
    }


ROWS: dict[str, Row] = {
    "dense": Row("the network itself", lambda subject: subject.original),
    "pcs": Row("PCS, sliced", lambda subject: _pcs(subject, subject.original), _sliced, steered=True),
    "pcs-frozen": Row("PCS, salience frozen, sliced", lambda subject: _pcs(subject, subject.original), _frozen, True, training="pcs"),
    "pcs-random": Row(
        "PCS from random weights, 4 times the epochs, sliced",
        lambda subject: _pcs(subject, subject.fresh()),
        _sliced,
        steered=True,
        longer=4,
        settings=_RANDOM_RATE,
    ),
    **_rows_of("pix", "PiX downscale", "pix", mode="downscale"),
    **_rows_of("squeeze", "PiX squeeze", "pix"),
    **_rows_of("mod", "MoD", "mod"),
    **_rows_of("slimconv", "SlimConv 8/3", "slimconv", k="8/3"),
    "magnitude": Row("magnitude pruning", lambda subject: prune(subject.original, "magnitude", subject.share, ())),
    "taylor": Row("Taylor pruning", lambda subject: prune(subject.original, "taylor", subject.share, subject.batches())),
}
