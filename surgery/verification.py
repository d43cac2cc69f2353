"""Are two networks the same function? And where do they part?

Both run on the same inputs in eval mode: random ones in batches of several sizes, or a user's images. Their outputs are compared, and so
is what every module of a common path puts out, in the order of execution, so that the first difference has a name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of, unwrapped, with_input_size
from chansurg.surgery.forwards.tracing import unchanged
from chansurg.surgery.images.opening import opened
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.nested import tensors_in

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled

BATCH_SIZES = (1, 3)
SAMPLES = 128
_IMAGES_A_BATCH = 4  # what every module puts out for them is kept
RELATIVE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Verdict:
    """How far two networks are apart.

    Args:
        equal: whether they are the same function, within the rounding of their dtype.
        max_abs_error: largest difference of two outputs.
        max_rel_error: that difference over the largest output.
        agreement: share of inputs, 0 to 1, for which the largest output is the same one; ``None`` where outputs are not ``[B, classes]``.
        blocks: path -> relative error (Euclidean) of what the module puts out, in order of execution.
        first_difference: path of the first module whose outputs differ beyond rounding.
        inputs: how many inputs were tried.
        reason: why they cannot be compared, where that is so.
    """

    equal: bool
    max_abs_error: float
    max_rel_error: float
    agreement: float | None
    blocks: Mapping[str, float]
    first_difference: str | None
    inputs: int
    reason: str | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values; an error that is not finite becomes null."""
        return {
            "equal": self.equal,
            "max_abs_error": _finite(self.max_abs_error),
            "max_rel_error": _finite(self.max_rel_error),
            "agreement": self.agreement,
            "blocks": [{"path": path, "relative_error": _finite(error)} for path, error in self.blocks.items()],
            "first_difference": self.first_difference,
            "inputs": self.inputs,
            "reason": self.reason,
        }


def verify(
    a: nn.Module,
    b: nn.Module,
    *,
    data: Unlabelled | str | os.PathLike[str] | None = None,
    samples: int = SAMPLES,
    input_size: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Verdict:
    """Compare two networks on random inputs, or on images.

    Args:
        a: a network.
        b: another, which takes the same inputs.
        data: images without labels, as :func:`~chansurg.surgery.images.unlabelled.open_unlabelled` reads them, prepared as for ``a``;
            left out, inputs are drawn from a normal distribution.
        samples: how many images are taken.
        input_size: ``(C, H, W)``, where the record's of ``a`` does not serve.
        seed: of the inputs, or of the choice of images.

    Raises:
        InputError: where one of them cannot run on such inputs, or images cannot be read.
    """
    a, b = unwrapped(a), unwrapped(b)
    preprocessing = with_input_size(record_of(a), input_size).preprocessing
    images = opened(data, preprocessing, samples, seed)
    batches = _random(preprocessing.input_size, seed) if images is None else images.batches(_IMAGES_A_BATCH)
    inputs = 0
    worst_abs = worst_rel = 0.0
    agreed: list[bool] = []
    errors: dict[str, float] = {}
    dtype = _dtype(a)
    for x in batches:
        inputs += len(x)
        expected, seen = _run(a, x)
        actual, differences = _run(b, x, against=seen)
        for path, error in differences.items():
            errors[path] = max(errors.get(path, 0.0), error)
        outputs = list(zip(_floats(expected), _floats(actual), strict=False))
        if len(_floats(expected)) != len(_floats(actual)) or any(p.shape != q.shape for p, q in outputs):
            shapes = [[list(t.shape) for t in _floats(side)] for side in (expected, actual)]
            return _incomparable(f"their outputs have shapes {shapes[0]} and {shapes[1]}", errors, inputs)
        if not outputs:
            return _incomparable(f"their outputs ({type(expected).__name__}) hold no floating-point tensors", errors, inputs)
        for p, q in outputs:
            worst_abs = max(worst_abs, gap(p, q).max().item() if p.numel() else 0.0)
            worst_rel = max(worst_rel, relative(gap(p, q).max(), finite_numbers(p).abs().max()) if p.numel() else 0.0)
        if outputs and outputs[0][0].ndim == 2:
            agreed += (outputs[0][0].argmax(1) == outputs[0][1].argmax(1)).tolist()
    tolerance = max(RELATIVE_TOLERANCE.get(dtype, 1e-5), RELATIVE_TOLERANCE.get(_dtype(b), 1e-5))
    equal = worst_rel <= tolerance
    first = None if equal else next((path for path, error in errors.items() if not error <= tolerance), None)
    agreement = sum(agreed) / len(agreed) if agreed else None
    return Verdict(equal, worst_abs, worst_rel, agreement, errors, first, inputs)


def _random(size: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for batch_size in BATCH_SIZES:
        yield torch.randn(batch_size, *size, generator=generator)


def _incomparable(reason: str, blocks: Mapping[str, float], inputs: int) -> Verdict:
    return Verdict(False, math.inf, math.inf, None, blocks, None, inputs, reason)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def gap(p: Tensor, q: Tensor) -> Tensor:
    """Absolute differences, in float64. The same infinity, or NaN on both sides, is no difference; on one side it is an infinite one."""
    p, q = p.double(), q.double().to(p.device)
    same = (p == q) | (p.isnan() & q.isnan())
    return (p - q).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)


def finite_numbers(p: Tensor) -> Tensor:
    """The numbers in float64, with zeros for what is not finite."""
    return p.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def relative(difference: Tensor, size: Tensor) -> float:
    """A difference over what it is a difference of; itself where that is zero."""
    ratio = (difference / size).item() if size and difference else difference.item()
    return math.inf if math.isnan(ratio) else ratio


def _run(model: nn.Module, x: Tensor, against: Mapping[str, list[Tensor]] | None = None) -> tuple[Any, dict[str, Any]]:
    """The model's output, and per module the tensors it puts out, or, given another model's, the largest relative error against those."""
    seen: dict[str, Any] = {}
    handles = []

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found = tensors_in(output)
            if not found or path in seen:
                return
            if against is None:
                seen[path] = [tensor.detach().clone() for tensor in found]
            elif path in against and [tensor.shape for tensor in against[path]] == [tensor.shape for tensor in found]:
                seen[path] = max(relative(gap(p, q).norm(), finite_numbers(p).norm()) for p, q in zip(against[path], found, strict=True))

        return hook

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_hook(watch(path)))
    home = next(model.parameters(), x)
    try:
        with torch.no_grad(), unchanged(model), eval_mode(model):
            output = model(x.to(device=home.device, dtype=_dtype(model)))
    except Exception as error:
        raise InputError(
            f"The network cannot run on inputs of shape {list(x.shape)}: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=type(model).__name__,
            not_done="The networks were not compared.",
            to_do="Pass the input size with --input-size C,H,W.",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return output, seen


def _floats(output: Any) -> list[Tensor]:
    return [tensor.detach().cpu() for tensor in tensors_in(output) if tensor.is_floating_point()]
