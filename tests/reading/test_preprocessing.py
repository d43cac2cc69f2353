"""The input size that goes with an architecture is one that the network takes."""

from __future__ import annotations

import pytest
import torch

from chansurg.surgery.architecture import Architecture
from chansurg.surgery.reading.builders import build
from chansurg.surgery.reading.preprocessing import preprocessing_of


@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        (Architecture("torchvision", "vit_b_16", {"image_size": 384}), 384),
        (Architecture("torchvision", "vit_h_14"), 224),
        (Architecture("torchvision", "efficientnet_b3"), 300),
        (Architecture("torchvision", "resnet50"), 224),
    ],
    ids=str,
)
def test_the_network_takes_the_size(architecture: Architecture, side: int) -> None:
    size = preprocessing_of(architecture).input_size
    assert size == (3, side, side)
    assert build(architecture)(torch.empty(1, *size, device="meta")).shape == (1, 1000)
