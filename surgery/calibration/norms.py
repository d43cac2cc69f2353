"""Running statistics of batch norms, measured again on what goes into them.

Two ways. :func:`reestimate` takes the measured statistics in place of those that were there, as training would have: what the network
computes changes. :func:`settle` takes them too, and lets the norm's scale and shift make up for it: what the network computes in eval mode
stays, and in training the norm does the same from the first batch on.

Source of the first: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, Section 4.2, and
Ioffe, Szegedy, "Batch Normalization", ICML 2015, Section 3.1 (population statistics).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.total = self.squares = torch.zeros(())

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double().movedim(1, 0).flatten(1)
        self.count += x.shape[1]
        self.total, self.squares = self.total.to(x.device) + x.sum(1), self.squares.to(x.device) + x.square().sum(1)

    def statistics(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)


def norms_in(modules: Sequence[nn.Module]) -> list[BatchNorm]:
    """The batch norms with running statistics in these modules, each once."""
    found = {id(part): part for module in modules for part in module.modules() if isinstance(part, BatchNorm) and part.track_running_stats}
    return list(found.values())


def reestimate(norms: Sequence[BatchNorm], play: Callable[[], None]) -> None:
    """Give norms the statistics of what goes into them, the average of those of all batches.

    Args:
        norms: in eval mode.
        play: runs all batches through the norms; a batch of one value a channel has no statistics, and is left out.
    """
    before = [(norm.momentum, norm.num_batches_tracked.clone() if norm.num_batches_tracked is not None else None) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()
    handles = [norm.register_forward_pre_hook(_take_in_what_has_statistics) for norm in norms]
    try:
        play()
    finally:
        for handle in handles:
            handle.remove()
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.eval()
            norm.momentum = momentum
            if batches is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(batches)


def _take_in_what_has_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    norm.training = inputs[0].numel() > inputs[0].shape[1]


def settle(norms: Sequence[BatchNorm], play: Callable[[], None]) -> None:
    """Give norms the statistics of what goes into them, and change their scale and shift so that they compute what they computed.

    Args:
        norms: in eval mode; those without scale and shift stay as they are.
        play: runs all images through the norms.
    """
    for norm, sums in _watch([norm for norm in norms if norm.affine], play).items():
        mean, variance = sums.statistics()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        old = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() + (mean - norm.running_mean.double()) * old
        with torch.no_grad():
            norm.weight.copy_(old * (variance + norm.eps).sqrt())
            norm.bias.copy_(shift)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


def _watch(norms: Sequence[BatchNorm], play: Callable[[], None]) -> dict[BatchNorm, _Sums]:
    """What went into the norms, in order of execution; those that saw nothing are left out."""
    seen: dict[BatchNorm, _Sums] = {}
    handles = [norm.register_forward_pre_hook(lambda norm, inputs: seen.setdefault(norm, _Sums())(norm, inputs)) for norm in norms]
    try:
        play()
    finally:
        for handle in handles:
            handle.remove()
    return seen
