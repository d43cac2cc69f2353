"""How ``stacked-schema3.safetensors`` was written, once; the file itself stays as it is, so that later versions must go on reading it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """A small network that MoD grew and narrowed, with slim convolutions on top, and PiX on top of those."""
    import chansurg

    network = chansurg.load("networks.small:small", input_size=(16,))
    mod = chansurg.convert(network, "mod", c=8, depths="5")
    slim = chansurg.convert(mod, "slimconv")
    pix = chansurg.convert(slim, "pix")
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    with torch.no_grad():
        outputs = pix(x).tolist()
    chansurg.save(pix, HERE / "stacked-schema3.safetensors")
    journal = chansurg.record_of(pix).journal
    tensors = [entry.as_json()["tensors"] for entry in journal]
    (HERE / "stacked-schema3.json").write_text(
        json.dumps({"outputs": outputs, "after": dict(journal[-1].after), "tensors": tensors}) + "\n"
    )


if __name__ == "__main__":
    main()
