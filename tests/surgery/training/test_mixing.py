from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.mixing import Mixing

CLASSES = 7


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(size, 3, 16, 16, generator=generator), torch.arange(size)


def share(targets: Tensor) -> float:
    """How much of each image is its own: the labels of ``batch`` are all different."""
    own = targets.diagonal()
    assert torch.allclose(own, own[0].expand_as(own))
    return own[0].item()


@pytest.mark.parametrize("number", range(5))
def test_mixup_blends_images_as_it_blends_targets(number: int) -> None:
    images, labels = batch()
    mixed, targets = Mixing(CLASSES, mixup=1.0)(images, labels, batch=number)
    kept = share(targets)
    assert torch.allclose(mixed, kept * images + (1 - kept) * images.roll(1, 0), atol=1e-6)
    assert torch.allclose(targets, kept * F.one_hot(labels, CLASSES) + (1 - kept) * F.one_hot(labels, CLASSES).roll(1, 0))


@pytest.mark.parametrize("number", range(5))
def test_cutmix_targets_are_shares_of_pixels(number: int) -> None:
    images, labels = batch()
    mixed, targets = Mixing(CLASSES, cutmix=1.0)(images, labels, batch=number)
    own, others = (mixed == images).all(1), (mixed == images.roll(1, 0)).all(1)
    assert (own | others).all()
    assert own.float().mean().item() == pytest.approx(share(targets), abs=1e-6)


def test_a_batch_is_mixed_by_its_number_alone() -> None:
    first, second = (Mixing(CLASSES, mixup=0.4, cutmix=1.0, seed=5) for _ in range(2))
    for number in range(7):
        first(*batch(), batch=number)
    torch.manual_seed(99)
    again = second(*batch(), batch=7)
    assert all(torch.equal(a, b) for a, b in zip(first(*batch(), batch=7), again, strict=True))


def test_seed_batch_and_process_all_matter() -> None:
    shares = set()
    for seed in range(2):
        mixing = Mixing(CLASSES, mixup=1.0, seed=seed)
        shares |= {share(mixing(*batch(), batch=number, process=process)[1]) for number in range(3) for process in range(3)}
    assert len(shares) == 18


def test_what_others_draw_stays_as_it_was() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    Mixing(CLASSES, cutmix=1.0)(*batch(), batch=0)
    assert torch.equal(torch.rand(3), wanted)


def test_either_kind_takes_its_turns() -> None:
    mixing, (images, labels) = Mixing(CLASSES, mixup=1.0, cutmix=1.0), batch()
    cut = [
        ((mixed == images) | (mixed == images.roll(1, 0))).all().item() for mixed, _ in (mixing(images, labels, batch=n) for n in range(40))
    ]
    assert 8 < sum(cut) < 32


def test_arguments_are_left_alone_and_shares_can_be_mixed_again() -> None:
    images, labels = batch()
    before = images.clone()
    soft = F.one_hot(labels, CLASSES).float()
    mixed, targets = Mixing(CLASSES, cutmix=1.0)(images, soft, batch=2)
    assert torch.equal(images, before)
    assert torch.equal(targets, Mixing(CLASSES, cutmix=1.0)(images, labels, batch=2)[1])
    assert torch.allclose(targets.sum(1), torch.ones(6))
    assert mixed.shape == images.shape


def test_smoothing_mixed_targets_is_mixing_smoothed_ones() -> None:
    images, labels = batch()
    mixing, logits = Mixing(CLASSES, mixup=1.0), torch.randn(6, CLASSES)
    smooth = F.one_hot(labels, CLASSES) * 0.9 + 0.1 / CLASSES
    wanted = -(mixing(images, smooth, batch=1)[1] * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(F.cross_entropy(logits, mixing(images, labels, batch=1)[1], label_smoothing=0.1), wanted)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (-1.0, 1.0)])
def test_alphas_that_mix_nothing(mixup: float, cutmix: float) -> None:
    with pytest.raises(InputError, match="do not mix anything"):
        Mixing(CLASSES, mixup=mixup, cutmix=cutmix)
