"""How ``pix-schema1.safetensors`` was written, once; the file itself stays as it is, so that later versions must go on reading it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """Two conversions of a small network with bottlenecks, one on top of the other."""
    import chansurg

    network = chansurg.load("networks.small:tiny", input_size=(16,))
    first = chansurg.convert(network, "pix")
    second = chansurg.convert(first, "pix", mode="downscale", zeta=2)
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    with torch.no_grad():
        outputs = second(x).tolist()
    chansurg.save(second, HERE / "pix-schema1.safetensors")
    after = dict(chansurg.record_of(second).journal[-1].after)
    (HERE / "pix-schema1.json").write_text(json.dumps({"outputs": outputs, "after": after}, indent=1) + "\n")


if __name__ == "__main__":
    main()
