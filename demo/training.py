"""A plain PyTorch training loop: what trained the demo's network, and what wins its accuracy back after a conversion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.digits import SEED, as_input, digits


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch ``[B, C, H, W]`` by up to one pixel, all its images the same way."""
    down, right = (int(step) - 1 for step in torch.randint(0, 3, (2,), generator=generator))
    padded = F.pad(images, (1, 1, 1, 1), value=float(images.min()))
    height, width = images.shape[2:]
    return padded[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]


def train(model: nn.Module, *, epochs: int, learning_rate: float, report: Callable[[int, float], None] | None = None) -> None:
    """Train in place on the digits' training part; leaves the network in eval mode.

    One thread: the network is so small that several would mostly wait for each other, and sums come out the same on every machine.
    """
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    pixels, labels = digits()["train"]
    images = as_input(pixels)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(images) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator)[: batches * 64].split(64):
            loss = F.cross_entropy(model(shifted(images[batch], generator)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        if report is not None:
            report(epoch + 1, total / batches)
    model.eval()
