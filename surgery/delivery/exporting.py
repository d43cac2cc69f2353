"""Exporting: a file that other programs run, checked against the network before it takes its name.

The network is optimised for where it goes, written to a temporary place beside the target, opened there, and run on inputs of several batch
sizes. Only a file whose outputs are the network's is renamed into place.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.delivery.agreement import Agreement, compare, outputs, worst
from chansurg.surgery.delivery.formats import FORMATS, OLDEST_OPSET, Format, Order, quiet
from chansurg.surgery.delivery.optimizing import Optimization, optimization_of, optimize
from chansurg.surgery.errors import ChansurgError, InputError, Refusal
from chansurg.surgery.files.provenance import record_of, unwrapped, with_input_size
from chansurg.surgery.files.weights_digest import weights_digest
from chansurg.surgery.files.writing import check_target, write_whole
from chansurg.surgery.journal import Record
from chansurg.surgery.nested import tensors_in

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference over the largest output. Runtimes sum in orders of their own."""
ROUNDINGS = 16.0
"""A network that rounds more than that by itself may differ by this many times its own rounding."""
_BATCH = 2
_BATCH_SIZES = (1, 2, 5)
_LARGEST_MESSAGE = 2**31 - 2**24


@dataclass(frozen=True)
class Export:
    """What was written, and how far it is from the network.

    Args:
        output: the file.
        format: ``onnx``, ``pt2`` or ``aoti``.
        bytes: its size.
        input_shape: ``[B, C, H, W]``; ``None`` stands for a batch axis that is free.
        dtype: of the input.
        opset: of ONNX; ``None`` in other formats.
        batch_sizes: what it was run on.
        max_abs_error: largest difference from the network's outputs.
        max_rel_error: that over the largest output.
        tolerance: what was allowed of that.
        optimization: what was done to the network first; ``None`` where it was exported as it is.
    """

    output: Path
    format: str
    bytes: int
    input_shape: tuple[int | None, ...]
    dtype: str
    opset: int | None
    batch_sizes: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    optimization: Optimization | None

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **vars(self),
            "output": str(self.output),
            "input_shape": list(self.input_shape),
            "batch_sizes": list(self.batch_sizes),
            "optimization": None if self.optimization is None else self.optimization.as_json(),
        }


def export(
    model: nn.Module,
    output: str | os.PathLike[str],
    format: str = "onnx",
    *,
    input_size: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    opset: int = OLDEST_OPSET,
    optimized: bool = True,
    overwrite: bool = True,
    seed: int = 0,
) -> Export:
    """Write a network for other programs to run.

    ``onnx`` is one file with the weights in it; ``pt2`` an archive of ``torch.export`` that needs torch alone; ``aoti`` code that torch's
    compiler has made for this kind of machine. Each carries the record, journal and all
    (:func:`~chansurg.surgery.delivery.exported_record.exported_record`), and the names of the weights.

    Args:
        model: a network that takes one float tensor ``[B, C, H, W]``; it is not changed.
        output: the target; an existing file is replaced only once the new one is whole and checked.
        format: see above.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels, where the record's does not serve.
        batch_size: fixes the batch axis; left out, it stays free.
        opset: version of ONNX's operators, at least 18.
        optimized: fold and simplify first (:func:`~chansurg.surgery.delivery.optimizing.optimize`).
        overwrite: replace an existing file.
        seed: of the inputs that the file is checked on.

    Raises:
        InputError: for an unknown format, a bad target, an opset or batch size that there is not, or where a package or the compiler that
            the format needs is not installed.
        Refusal: where the network cannot be exported, or the file does not compute what the network does. Nothing is left behind.
    """
    form = _format(format)
    target = Path(output)
    check_target(target)
    _check_numbers(batch_size, opset)
    if (missing := form.missing()) is not None:
        raise InputError(
            f"{format} needs something that is not there: {missing[0]}.",
            where=f"format {format}",
            not_done="Nothing was written.",
            to_do=missing[1],
        )
    network = copy.deepcopy(unwrapped(model)).eval()
    record = with_input_size(record_of(model), input_size)
    network = network.cpu() if form.on_cpu else network
    _check_room(network, target, format)
    home = next((tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()), torch.zeros(()))
    inputs = _inputs(record, home, batch_size, seed)
    expected = [_expected(network, x) for x in inputs]
    example = torch.cat([inputs[0], inputs[0]])[:_BATCH] if batch_size is None else inputs[0]
    ready = optimize(network, example, runtime=form.runtime) if optimized else copy.deepcopy(network)
    text = _text(record, network)
    order = Order(ready.requires_grad_(False), example, batch_size is None, len(tensors_in(expected[0])), text, opset)
    tolerance = _tolerance(network, inputs[-1], expected[-1], home.dtype)
    found: list[Agreement] = []

    def write(temporary: Path) -> None:
        # Exporters go by a file's suffix, which a temporary one has not.
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}.", dir=target.parent) as folder:
            made = Path(folder) / f"{target.stem[:100] or 'network'}{form.suffix}"
            _exported(order, made, form, format)
            found.append(_run(form, made, home.device, inputs, expected, format))
            _refuse_difference(found[0], tolerance, format)
            os.replace(made, temporary)

    write_whole(target, write, overwrite=overwrite)
    return Export(
        target,
        format,
        target.stat().st_size,
        (batch_size, *inputs[0].shape[1:]),
        str(home.dtype).removeprefix("torch."),
        opset if format == "onnx" else None,
        tuple(x.shape[0] for x in inputs),
        found[0].max_abs_error,
        found[0].max_rel_error,
        tolerance,
        optimization_of(ready) if optimized else None,
    )


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(
            f"{name!r} is no format.",
            where="option --format",
            not_done="Nothing was written.",
            to_do=f"Choose one of {', '.join(FORMATS)}.",
        )
    return FORMATS[name]


def _check_numbers(batch_size: int | None, opset: int) -> None:
    def refuse(what: str, option: str, to_do: str) -> InputError:
        return InputError(what, where=f"option --{option}", not_done="Nothing was written.", to_do=to_do)

    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise refuse(f"{batch_size!r} is no batch size.", "batch-size", "Give a whole number of at least 1, or leave it out.")
    if isinstance(opset, bool) or opset < OLDEST_OPSET:
        raise refuse(f"Opset {opset!r} is older than what is written.", "opset", f"Give {OLDEST_OPSET} or a newer one that torch knows.")


def _check_room(network: nn.Module, target: Path, format: str) -> None:
    """See, before any work is done, that the weights fit."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    if format == "onnx" and size > _LARGEST_MESSAGE:
        raise Refusal(
            f"The weights take {size / 2**30:.1f} GiB, and one ONNX file holds 2.",
            where=str(target),
            not_done="Nothing was written.",
            to_do="Export to pt2 or aoti, or in half precision: model.half().",
        )
    with suppress(OSError):
        if shutil.disk_usage(target.parent).free < size:
            raise Refusal(
                f"The disk is full: the weights alone take {size / 2**20:.0f} MiB.",
                where=str(target),
                not_done="Nothing was written.",
                to_do="Free some space or write elsewhere with -o.",
            )


def _inputs(record: Record, home: Tensor, batch_size: int | None, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = _BATCH_SIZES if batch_size is None else (batch_size,)
    return [torch.randn(size, *record.preprocessing.input_size, generator=generator).to(home.device, home.dtype) for size in sizes]


def _expected(network: nn.Module, x: Tensor) -> Any:
    try:
        return outputs(network, x)
    except Exception as error:
        raise InputError(
            f"The network does not run on an input of shape {list(x.shape)}: {_first_line(error)}",
            where=type(network).__name__,
            not_done="Nothing was written.",
            to_do="Pass the input size that it takes: --input-size C,H,W.",
        ) from error


def _tolerance(network: nn.Module, x: Tensor, expected: Any, dtype: torch.dtype) -> float:
    """What the file may differ by; more where the network itself rounds more than that."""
    allowed = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    with suppress(Exception):  # not every network runs in double precision, and not every device
        exact = outputs(copy.deepcopy(network).double(), x.double())
        rounding = compare(exact, expected)
        if rounding.reason is None and dtype != torch.float64:
            allowed = max(allowed, ROUNDINGS * rounding.max_rel_error)
    return allowed


def _text(record: Record, network: nn.Module) -> str:
    """As a model file's header has it."""
    header = {**record.as_json(), "weights": weights_digest(network), "tied": {}, "channels_last": []}
    return json.dumps(header, sort_keys=True, separators=(",", ":"))


def _exported(order: Order, path: Path, form: Format, format: str) -> None:
    try:
        with quiet(), torch.no_grad():
            form.write(order, path)
    except (OSError, ChansurgError):
        raise
    except Exception as error:  # exporters and compilers fail in every way there is
        fixed = " --batch-size 1 fixes the batch axis, where the network works for one batch size only." if order.free_batch else ""
        raise Refusal(
            f"The network cannot be exported to {format}: {_first_line(error)}",
            where=f"{type(order.network).__name__}, format {format}",
            not_done="Nothing was written.",
            to_do=f"Its forward must be one that torch.export follows: no decisions by the values of tensors.{fixed}",
        ) from error


def _run(form: Format, path: Path, device: torch.device, inputs: list[Tensor], expected: list[Any], format: str) -> Agreement:
    try:
        with quiet(), torch.no_grad():
            opened: Callable[[Tensor], Any] = form.open(path, device)
            return worst([compare(wanted, opened(x)) for x, wanted in zip(inputs, expected, strict=True)])
    except Exception as error:
        precision = " Most runtimes on the CPU want float32: model.float()." if inputs[0].dtype != torch.float32 else ""
        raise Refusal(
            f"The exported file does not run: {_first_line(error)}",
            where=f"format {format}, inputs of shape {[list(x.shape) for x in inputs]}",
            not_done="The file was thrown away; nothing was written.",
            to_do=f"Try another format, or without optimising it first (--no-optimize).{precision}",
        ) from error


def _refuse_difference(found: Agreement, tolerance: float, format: str) -> None:
    if found.reason is None and found.max_rel_error <= tolerance:
        return
    what = found.reason or f"its outputs differ by {found.max_rel_error:.1e} of the largest, and {tolerance:.1e} is allowed"
    raise Refusal(
        f"The exported file is not the network: {what}.",
        where=f"format {format}",
        not_done="The file was thrown away; nothing was written.",
        to_do="Try without optimising it first (--no-optimize), or another format; please report it with the architecture's name.",
    )


def _first_line(error: BaseException) -> str:
    lines = [line for line in (str(error) or type(error).__name__).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
