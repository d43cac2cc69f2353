"""Images that networks are calibrated on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from chansurg.surgery.architecture import Preprocessing
from chansurg.surgery.images.unlabelled import Unlabelled


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Networks that a test builds have the same weights whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def pictures() -> Callable[[int, int], Unlabelled]:
    """So many images of so many pixels a side: coarse random patterns, different everywhere."""

    def made(count: int, side: int) -> Unlabelled:
        def decode(index: int) -> Image.Image:
            coarse = np.random.default_rng(index).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
            return Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR)

        images = [(f"{index}.png", partial(decode, index)) for index in range(count)]
        return Unlabelled("patterns", images, Preprocessing(input_size=(3, side, side)), count)

    return made
