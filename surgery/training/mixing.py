"""MixUp and CutMix: each image of a batch mixed with its neighbour, the targets mixed alike.

The transforms are torchvision's. What they draw is decided by the seed, the number of the batch and the process alone, so that a run
that was interrupted draws the same again.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from chansurg.surgery.errors import InputError
from chansurg.surgery.training.seeding import seed_of


class Mixing:
    """Mixes batches of one run.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization"; Yun et al., "CutMix". Where both are asked for, every batch gets one of
    them, either as likely.

    Args:
        classes: the network's outputs.
        mixup: alpha of MixUp's Beta distribution; 0 is none.
        cutmix: alpha of CutMix's; 0 is none.
        seed: of the run.

    Raises:
        InputError: where an alpha is negative or neither is asked for.
    """

    def __init__(self, classes: int, *, mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> None:
        if min(mixup, cutmix) < 0 or max(mixup, cutmix) <= 0:
            raise InputError(
                f"MixUp {mixup} and CutMix {cutmix} do not mix anything.",
                where="options --mixup and --cutmix",
                not_done="Nothing was trained.",
                to_do="Pass an alpha above 0 for at least one of them, such as 0.2 for MixUp or 1.0 for CutMix.",
            )
        self.classes = classes
        self.seed = seed
        alphas = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._transforms = [kind(alpha=alpha, num_classes=classes) for kind, alpha in alphas if alpha > 0]

    def __call__(self, images: Tensor, labels: Tensor, *, batch: int, process: int = 0) -> tuple[Tensor, Tensor]:
        """Mix one batch.

        Args:
            images: ``[B, C, H, W]``.
            labels: ``[B]`` int64, or ``[B, classes]`` shares.
            batch: its number within the run; each micro-batch of an accumulated step has its own.
            process: the number of the process.

        Returns:
            Images ``[B, C, H, W]`` and targets ``[B, classes]``, shares that sum to 1; neither argument is changed.
        """
        # Torchvision draws from the CPU's own generator, which goes back to where it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, batch, process))
            transform = self._transforms[int(torch.randint(len(self._transforms), ()))]
            mixed, targets = transform(images, labels)
        return mixed, targets
