"""Train the demo's network from scratch and write ``demo/digits-resnet.safetensors``: ``python -m demo.train_digits``."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from demo.digits import SEED, as_input, digits, network
from demo.training import train


def main() -> None:
    """Train with a fixed seed, show the held-out accuracy, write the weights."""
    torch.manual_seed(SEED)
    model = network()
    train(model, epochs=40, learning_rate=0.1, report=lambda epoch, loss: print(f"epoch {epoch:2}  loss {loss:.4f}"))
    pixels, labels = digits()["val"]
    with torch.inference_mode():
        correct = (model(as_input(pixels)).argmax(dim=1) == labels).float().mean()
    target = Path(__file__).with_name("digits-resnet.safetensors")
    save_file(model.state_dict(), target)
    print(f"{100 * float(correct):.2f} % of {len(labels)} held-out digits; {target.stat().st_size:,} bytes in {target}")


if __name__ == "__main__":
    main()
