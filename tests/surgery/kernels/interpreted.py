"""Runs the kernels for CUDA on the CPU, in Triton's interpreter, and compares them with the plain forms.

A program: the interpreter has to be chosen before Triton is imported.
"""

from __future__ import annotations

import torch

from chansurg.recipes.pix import fusing_triton
from chansurg.recipes.pix.fusing import PICK_OR_MIX
from chansurg.recipes.slimconv import folding_triton
from chansurg.recipes.slimconv.folding import FOLD_CHANNELS
from chansurg.surgery.kernels import moving_triton
from chansurg.surgery.kernels.layouts import channels_innermost, empty, packed
from chansurg.surgery.kernels.moving import TAKE_CHANNELS
from tests.networks.calls import Call, calls, with_gaps

SHAPE = "1x8x5x7"


def main() -> None:
    checked = 0
    for call in calls():
        if SHAPE not in call.name or not call.operator.on_cuda or any(part in call.name for part in ("inf", with_gaps.__name__)):
            continue
        check(call)
        checked += 1
    print(f"{checked} calls agree")


def check(call: Call) -> None:
    """Forward, and backward where there is a kernel for it."""
    leaves = call.leaves()
    inputs = leaves[: call.operator.differentiable]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = call.operator.plain(*exact, *leaves[len(inputs) :])
    gradient = torch.randn(expected.shape)
    wanted = torch.autograd.grad(expected, exact, gradient.double())
    x, *others = (value.detach() if isinstance(value, torch.Tensor) else value for value in leaves)
    innermost = channels_innermost(x)
    y = call.operator.empty(x, *others).fill_(torch.nan)
    for_x = empty(x, x.shape[1]).fill_(torch.nan)
    found: tuple[torch.Tensor, ...] = ()
    if call.operator is PICK_OR_MIX:
        p, order, counts, sizes, *rest = others
        numbers = (counts[0], sizes[0], sizes[-1])
        fusing_triton.forward(x, p, order, numbers, *rest, y)
        found = (for_x, fusing_triton.backward(packed(gradient, innermost=innermost), x, p, order, numbers, *rest, for_x))
    elif call.operator is FOLD_CHANNELS:
        weights, folds = others
        folding_triton.forward(x, weights, folds, y)
        given = torch.unflatten(packed(gradient.flatten(0, 1), innermost=innermost), 0, (weights.shape[1], -1))
        found = (for_x, folding_triton.backward(given, x, weights, folds, for_x))
    elif call.operator is TAKE_CHANNELS:
        moving_triton.take(x, others[0], y)
    else:
        moving_triton.add(x, packed(others[0], innermost=innermost), others[1], y)
    for mine, its in zip((y, *found), (expected, *wanted), strict=False):
        error = float((mine.double() - its).abs().max() / its.abs().max().clamp(min=1e-30))
        assert error <= 2e-6, f"{call.name}: {error}"


if __name__ == "__main__":
    main()
