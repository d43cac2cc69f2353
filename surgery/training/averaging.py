"""An exponential moving average of a network's weights, which often does better than the weights themselves.

The average is PyTorch's :class:`~torch.optim.swa_utils.AveragedModel`. Parameters and the statistics of norms are averaged; every other
buffer is the trained network's own: counters, and what a gate has let go of, are facts and have no average.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import unwrapped

_Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """The moving average of one network.

    Args:
        model: the network that is trained; a wrapped one is unwrapped. Its copy lives on the same device, in eval mode.
        decay: how much of the average stays at every update, from 0 to 1.
        warmup: start with a smaller decay, ``(1 + n) / (10 + n)`` after ``n`` updates, so that a short run forgets where it began.

    Raises:
        InputError: where the decay is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise InputError(
                f"A decay of {decay} averages nothing.",
                where="option --ema",
                not_done="Nothing was trained.",
                to_do="Pass a number from 0 to below 1, such as 0.999.",
            )
        self.decay, self.warmup = decay, warmup
        self._average = AveragedModel(unwrapped(model), multi_avg_fn=self._blend, use_buffers=True)
        self._average.requires_grad_(False).eval()

    @property
    def model(self) -> nn.Module:
        """The averaged network, in eval mode."""
        network: nn.Module = self._average.module
        return network

    @property
    def updates(self) -> int:
        """How often it was updated."""
        return int(self._average.n_averaged)

    @property
    def current_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model``, the trained network after an optimizer step, into the average; the first update copies them."""
        live = unwrapped(model)
        self._average.update_parameters(live)
        for name, fact in _facts(live):
            self.model.get_buffer(name).copy_(fact)

    def state(self) -> dict[str, Tensor]:
        """Everything that :meth:`restore` needs, as tensors: the averaged network's state and ``n_averaged``."""
        return {name: tensor.detach() for name, tensor in self._average.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly where :meth:`state` was taken."""
        self._average.load_state_dict(dict(state))

    def _blend(self, averages: _Tensors, values: _Tensors, updates: Tensor | int) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - self.current_decay)
        else:
            torch._foreach_copy_(averages, values)


def _facts(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that are no statistics of a norm."""
    for path, module in network.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            yield from module.named_buffers(path, recurse=False)
