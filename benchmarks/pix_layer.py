"""How quick is PiX beside the 1x1 convolution, batch norm and ReLU it replaces? Timed in turn, in one run, eval mode.

Run from the root of the checkout: ``python benchmarks/pix_layer.py [--device cuda] [--batch-size 8] [--compile]``. Ratios over 1 mean
that PiX is the quicker one.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
from torch import nn

from chansurg.recipes.pix.layer import PickOrMix
from chansurg.surgery.delivery.timing import seconds_in_turn, stopwatch_for

# the squeezes of ResNet-50: (channels in, channels out, height and width)
SITES = [(256, 64, 56), (512, 128, 28), (1024, 256, 14), (2048, 512, 7)]
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="compile every layer first (needs a C++ compiler on CPU)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, batch {options.batch_size}, median of {options.rounds} rounds in turn")
    print(f"{'site':>16} {'layout':>14} {'conv ms':>9} {'contiguous':>11} {'strided':>9}")
    for channels, outputs, size in SITES:
        for layout, memory_format in LAYOUTS.items():
            squeeze = nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
            layers = [squeeze, *(PickOrMix(channels, outputs, subsets=subsets) for subsets in ("contiguous", "strided"))]
            x = torch.rand(options.batch_size, channels, size, size, device=options.device).to(memory_format=memory_format)
            ready = [layer.eval().to(options.device, memory_format=memory_format) for layer in layers]
            runs = [torch.compile(layer) if options.compile else layer for layer in ready]
            with torch.no_grad():
                calls = [partial(run, x) for run in runs]
                seconds = seconds_in_turn(calls, rounds=options.rounds, stopwatch=stopwatch_for(options.device))
            conv, contiguous, strided = map(statistics.median, seconds)
            ratios = f"{conv / contiguous:10.2f}x {conv / strided:8.2f}x"
            print(f"{f'{channels} -> {outputs} @{size}':>16} {layout:>14} {conv * 1e3:9.3f} {ratios}")


if __name__ == "__main__":
    main()
