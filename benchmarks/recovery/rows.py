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
    """

    original: nn.Module
    data: Path
    seed: int
    share: float
    shrink: str

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
        settings: of the training run, beside those that all rows share.
    """

    title: str
    prepare: Callable[[Subject], nn.Module]
    finish: Callable[[nn.Module], nn.Module] = _as_it_is
    steered: bool = False
    training: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def _pcs(subject: Subject, network: nn.Module) -> nn.Module:
    return chansurg.convert(network, "pcs", shrink=subject.shrink)


def _pix(network: nn.Module) -> nn.Module:
    return chansurg.convert(network, "pix", mode="downscale")


def _mod(network: nn.Module) -> nn.Module:
    return chansurg.convert(network, "mod")


def _slimconv(network: nn.Module) -> nn.Module:
    return chansurg.convert(network, "slimconv", k="8/3")


def _sliced(network: nn.Module) -> nn.Module:
    return chansurg.slice(network)


def _frozen(network: nn.Module) -> nn.Module:
    return chansurg.slice(network, freeze_salience=True)


ROWS: dict[str, Row] = {
    "dense": Row("the network itself", lambda subject: subject.original),
    "pcs": Row("PCS, sliced", lambda subject: _pcs(subject, subject.original), _sliced, steered=True),
    "pcs-frozen": Row("PCS, salience frozen, sliced", lambda subject: _pcs(subject, subject.original), _frozen, True, training="pcs"),
    "pcs-random": Row("PCS from random weights, sliced", lambda subject: _pcs(subject, subject.fresh()), _sliced, steered=True),
    "pix": Row("PiX downscale", lambda subject: _pix(subject.original)),
    "pix-random": Row("PiX downscale from random weights", lambda subject: _pix(subject.fresh())),
    "mod": Row("MoD", lambda subject: _mod(subject.original)),
    "mod-random": Row("MoD from random weights", lambda subject: _mod(subject.fresh())),
    "slimconv": Row("SlimConv 8/3", lambda subject: _slimconv(subject.original)),
    "slimconv-random": Row("SlimConv 8/3 from random weights", lambda subject: _slimconv(subject.fresh())),
    "magnitude": Row("magnitude pruning", lambda subject: prune(subject.original, "magnitude", subject.share, ())),
    "taylor": Row("Taylor pruning", lambda subject: prune(subject.original, "taylor", subject.share, subject.batches())),
}
