from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeTree = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tree(tmp_path_factory: pytest.TempPathFactory) -> MakeTree:
    """Class folders of noisy pictures, each class in a colour of its own, so that there is something to learn."""

    def make(*, train: int = 24, val: int = 9, classes: tuple[str, ...] = ("ant", "bee", "cat"), size: int = 16) -> Path:
        random, top = np.random.default_rng(7), tmp_path_factory.mktemp("images")
        for split, number in (("train", train), ("val", val)):
            for index in range(number):
                kind = index % len(classes)
                pixels = random.integers(0, 120, (size, size, 3)) + np.array([120 * (kind == channel) for channel in range(3)])
                folder = top / split / classes[kind]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03}.png")
        return top

    return make


@pytest.fixture
def tree(make_tree: MakeTree) -> Path:
    return make_tree()
