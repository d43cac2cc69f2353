"""A network whose gates learn, by no recipe's rule: what training promises to any recipe's layer can be tried on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.gating import Gate
from chansurg.surgery.layer import Moment


class LearningGate(Gate):
    """Salience from one linear layer on the pooled source; its loss is the mean salience, and it closes below a tenth."""

    no_weight_decay = frozenset(("generator.weight",))
    unit, channel_dim = 1, 1

    def __init__(self, in_channels: int, entries: int) -> None:
        super().__init__()
        self.generator = nn.Linear(in_channels, entries)
        self.register_buffer("mask", torch.ones(entries, dtype=torch.bool))
        self.register_buffer("running_salience", torch.full((entries,), 0.5))
        self.register_buffer("importance", torch.arange(entries).float())
        self.register_buffer("sensitivity", torch.zeros(entries))
        self.seen: Tensor | None = None
        self.steps = 0

    @property
    def shrinkable(self) -> int:
        return self.entries - 1

    @property
    def shrinks_until(self) -> float:
        return 1.0

    def forward(self, features: Tensor, source: Tensor) -> Tensor:
        salience = torch.sigmoid(self.generator(source.mean((2, 3))))
        if self.training:
            self.seen = salience
        return features * (salience * self.mask)[:, :, None, None]

    def training_loss(self, moment: Moment) -> Tensor | None:
        return None if self.seen is None else (moment.pressure or 1.0) * moment.progress * self.seen.float().mean()

    def step_taken(self, moment: Moment) -> None:
        if self.seen is not None:
            self.running_salience = moment.mean(self.seen.detach().float().mean(0))
            self.mask = moment.any(self.running_salience > 0.1)
            self.seen = None
            self.steps += 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "seen": None}


class Gated(nn.Module):
    """``[B, 3, H, W] -> [B, classes]``, with one gate behind each of two convolutions."""

    def __init__(self, classes: int = 5, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.gate1 = LearningGate(3, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.gate2 = LearningGate(width, width)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gate1(torch.relu(self.bn1(self.conv1(x))), x)
        z = self.gate2(torch.relu(self.bn2(self.conv2(y))), y)
        return self.fc(z.mean((2, 3)))
