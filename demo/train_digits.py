"""Train the demo's network from scratch and write ``demo/digits-resnet.safetensors``: ``python -m demo.train_digits``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import chansurg
from demo.digits import SEED, write_image_folder

SETTINGS: dict[str, Any] = {
    "epochs": 30,
    "batch_size": 64,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "augment": "none",  # a mirrored digit is another sign
    "val_every": 10,
    "seed": SEED,
}


def main() -> None:
    """Train with a fixed seed on one thread, show the held-out accuracy, write the model file."""
    torch.set_num_threads(1)
    fresh = chansurg.load("demo.digits:network", input_size=(8,))
    with TemporaryDirectory() as folder:
        write_image_folder(Path(folder))
        trained = chansurg.finetune(fresh, folder, **SETTINGS)
    target = Path(__file__).with_name("digits-resnet.safetensors")
    chansurg.save(trained, target)
    reached = chansurg.record_of(trained).journal[-1].results
    print(f"{reached['val_top1']:.2f} % of the held-out digits; {target.stat().st_size:,} bytes in {target}")


if __name__ == "__main__":
    main()
