"""How ``pcs-schema2.safetensors`` was written, once; the file itself stays as it is, so that later versions must go on reading it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    """A small network converted by PCS, trained for a few steps on plain colours, masked, and sliced."""
    import chansurg
    from chansurg.surgery.gating import gates

    network = chansurg.load("networks.small:tiny", input_size=(16,))
    gated = chansurg.convert(network, "pcs")
    with TemporaryDirectory() as folder:
        for split in ("train", "val"):
            for name, colour in (("blue", (0, 0, 255)), ("green", (0, 255, 0)), ("red", (255, 0, 0))):
                (Path(folder) / split / name).mkdir(parents=True)
                for shade in range(4):
                    picture = Image.new("RGB", (16, 16), tuple(max(part - 20 * shade, 0) for part in colour))
                    picture.save(Path(folder) / split / name / f"{shade}.png")
        trained = chansurg.finetune(gated, folder, epochs=4, batch_size=4, augment="none", teacher=network)
    for gate in gates(trained).values():
        gate.mask[gate.ranking()[: gate.shrinkable]] = False
    sliced = chansurg.slice(trained)
    x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    with torch.no_grad():
        outputs = sliced(x).tolist()
    chansurg.save(sliced, HERE / "pcs-schema2.safetensors")
    after = dict(chansurg.record_of(sliced).journal[-1].after)
    masks = {path: kept.tolist() for path, kept in chansurg.masks(sliced).items()}
    (HERE / "pcs-schema2.json").write_text(json.dumps({"outputs": outputs, "after": after, "masks": masks}) + "\n")


if __name__ == "__main__":
    main()
