"""How quick are the operators, beside their plain forms, and beside copying as many bytes as they have to move? Timed in turn, in one run.

Run from the root of the checkout: ``python benchmarks/kernels.py [--device cuda] [--batch-size 8] [--dtype bfloat16] [--backward]``.
``speed-up`` is over the plain form, ``of a copy`` how many times as long as copying the bytes of the inputs and the outputs takes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.pix.sampling import SAMPLE_CHANNELS
from chansurg.recipes.slimconv.attending import ATTEND_CHANNELS
from chansurg.recipes.slimconv.folding import FOLD_CHANNELS
from chansurg.surgery.delivery.timing import seconds_in_turn, stopwatch_for
from chansurg.surgery.kernels.moving import ADD_CHANNELS, TAKE_CHANNELS
from chansurg.surgery.kernels.operators import Operator

MAPS = [(256, 56), (512, 28), (1024, 14), (2048, 7)]  # of ResNet-50's stages: channels, height and width
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backward", action="store_true", help="forward and backward together")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    what = "forward and backward" if options.backward else "forward"
    where = f"{options.device}, {torch.get_num_threads()} threads, batch {options.batch_size}, {options.dtype}"
    print(f"torch {torch.__version__}, {where}, {what}")
    print(f"{'operator':>16} {'map':>12} {'layout':>14} {'plain ms':>9} {'kernel ms':>10} {'speed-up':>9} {'of a copy':>10}")
    for channels, size in MAPS:
        for layout, memory_format in LAYOUTS.items():
            x = torch.randn(options.batch_size, channels, size, size).relu().to(options.device, dtype, memory_format=memory_format)
            for operator, arguments in calls(x):
                plain, kernel, copy = times(operator, arguments, options)
                shape = f"{channels} @{size}"
                ratios = f"{plain / kernel:8.2f}x {kernel / copy:9.2f}x"
                print(f"{operator.name:>16} {shape:>12} {layout:>14} {1e3 * plain:9.3f} {1e3 * kernel:10.3f} {ratios}", flush=True)


def calls(x: Tensor) -> Iterator[tuple[Operator, tuple[Any, ...]]]:
    """Every operator on a map ``[B, C, H, W]``, as the recipes call them."""
    batch, channels = x.shape[:2]
    p = torch.rand(batch, channels // 4, device=x.device).to(x.dtype)
    yield PICK_OR_MIX, (x, p, None, [channels // 4], [4], False, False, 0.5)
    theta, beta = (torch.randn(shape, device=x.device).to(x.dtype) for shape in ((channels // 4, channels), (channels // 4,)))
    if SAMPLE_CHANNELS.has_kernel(x):
        yield SAMPLE_CHANNELS, (x, theta, beta, None, [channels // 4], [4], False, False, 0.5, True)
    yield FOLD_CHANNELS, (x, torch.rand(batch, 2, channels, device=x.device).to(x.dtype), 2)
    if ATTEND_CHANNELS.has_kernel(x):
        shapes = ((channels // 32, channels), (channels // 32,), (channels, channels // 32), (channels,))
        attention = [torch.randn(shape).to(x.dtype) for shape in shapes]
        yield ATTEND_CHANNELS, (x, *attention, torch.stack([torch.arange(channels), torch.arange(channels).flip(0)]), 2)
    index = torch.stack([torch.randperm(channels, device=x.device)[: channels // 4] for _ in range(batch)])
    yield TAKE_CHANNELS, (x, index)
    yield ADD_CHANNELS, (x, TAKE_CHANNELS(x, index), index[0])


def times(operator: Operator, arguments: tuple[Any, ...], options: argparse.Namespace) -> list[float]:
    """Median seconds of the plain form, the kernel, and a copy of the bytes that have to be moved."""
    inputs = [tensor.detach().requires_grad_(options.backward) for tensor in arguments[: operator.differentiable]]
    others = arguments[operator.differentiable :]
    if not operator.has_kernel(inputs[0]):
        raise SystemExit("There are no kernels for this device here.")

    def run(compute: Callable[..., Tensor]) -> None:
        if not options.backward:
            with torch.inference_mode():
                compute(*inputs, *others)
            return
        found = compute(*inputs, *others)
        torch.autograd.grad(found, inputs, gradient)

    with torch.no_grad():
        gradient = torch.randn_like(operator(*inputs, *others))
    numbers = moved(operator, inputs, others, gradient) * (2 if options.backward else 1)
    source = torch.rand(numbers // 2, device=options.device).to(inputs[0].dtype)
    target = torch.empty_like(source)
    runs = [partial(run, operator.plain), partial(run, operator), lambda: target.copy_(source)]
    seconds = seconds_in_turn(runs, rounds=options.rounds, stopwatch=stopwatch_for(options.device))
    return [statistics.median(taken) for taken in seconds]


def moved(operator: Operator, inputs: list[Tensor], others: tuple[Any, ...], output: Tensor) -> int:
    """Numbers that have to be read or written: of a map that channels are taken from, those that are."""
    if operator is TAKE_CHANNELS:
        return 2 * output.numel()
    return sum(tensor.numel() for tensor in inputs) + output.numel()


if __name__ == "__main__":
    main()
