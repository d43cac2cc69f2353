"""The formats that a network can be exported to: how a file is written, how it is opened again to be run, and what that takes.

Opening an archive of ``torch.export`` or a compiled one runs code that it holds. It is done here to files that were written a moment ago,
and to no others.
"""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.files.header_record import KEY

INPUT = "input"
OUTPUT = "output"
OLDEST_OPSET = 18
_STACKS = "pkg.torch.onnx.stack_trace"
_EXTRA = f"{KEY}.json"


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Args:
        network: in eval mode, without gradients.
        example: ``[B, C, H, W]`` on the network's device.
        free_batch: whether ``B`` stays free in the file; then it is at least 2 in the example.
        outputs: how many tensors the network puts out.
        record: the text that the file carries under the key ``chansurg``.
        opset: of ONNX.
    """

    network: nn.Module
    example: Tensor
    free_batch: bool
    outputs: int
    record: str
    opset: int = OLDEST_OPSET


@dataclass(frozen=True)
class Format:
    """A format.

    Args:
        suffix: of its files.
        runtime: what a network is optimised for that goes there.
        write: fills a file, whose name ends with the suffix.
        open: from a file to a call ``[B, C, H, W] -> tensors``, on the device given.
        missing: what the machine lacks to write and check it, and what to do about it; ``None`` where nothing.
        on_cpu: whether the network is moved to the CPU first.
    """

    suffix: str
    runtime: str
    write: Callable[[Order, Path], None]
    open: Callable[[Path, torch.device], Callable[[Tensor], Any]]
    missing: Callable[[], tuple[str, str] | None]
    on_cpu: bool = False


def _write_onnx(order: Order, path: Path) -> None:
    names = [OUTPUT] if order.outputs == 1 else [f"{OUTPUT}_{index}" for index in range(order.outputs)]
    program: Any = torch.onnx.export(
        order.network,
        (order.example,),
        dynamo=True,
        dynamic_shapes=_shapes(order),
        input_names=[INPUT],
        output_names=names,
        opset_version=order.opset,
        verbose=False,
    )
    program.model.metadata_props[KEY] = order.record
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(_STACKS, None)  # it names folders of this machine
    program.save(path, external_data=False)


def _open_onnx(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(found) for found in session.run(None, {name: x.cpu().contiguous().numpy()})]

    return run


def _missing_for_onnx() -> tuple[str, str] | None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if not missing:
        return None
    return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed", "Install them: pip install 'chansurg[onnx]'."


def _exported(order: Order) -> torch.export.ExportedProgram:
    program = torch.export.export(order.network, (order.example,), dynamic_shapes=_shapes(order))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def _write_pt2(order: Order, path: Path) -> None:
    torch.export.save(_exported(order), path, extra_files={_EXTRA: order.record})


def _open_pt2(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    return torch.export.load(path).module()


def _write_aoti(order: Order, path: Path) -> None:
    inductor: Any = importlib.import_module("torch._inductor")
    settings = {"aot_inductor.metadata": {KEY: order.record}}
    inductor.aoti_compile_and_package(_exported(order), package_path=str(path), inductor_configs=settings)


def _open_aoti(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    inductor: Any = importlib.import_module("torch._inductor")
    opened: Callable[[Tensor], Any] = inductor.aoti_load_package(str(path))
    return opened


def _missing_compiler() -> tuple[str, str] | None:
    if any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name):
        return None
    advice = "Install one (on Debian: apt install g++; on macOS: xcode-select --install), or name it in CXX. --format pt2 needs none."
    return "there is no C++ compiler", advice


def _nothing_missing() -> None:
    return None


def _shapes(order: Order) -> tuple[Mapping[int, Any] | None] | None:
    return ({0: torch.export.Dim("batch")},) if order.free_batch else None


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", _write_onnx, _open_onnx, _missing_for_onnx, on_cpu=True),
    "pt2": Format(".pt2", "export", _write_pt2, _open_pt2, _nothing_missing),
    "aoti": Format(".pt2", "aoti", _write_aoti, _open_aoti, _missing_compiler),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and compilers say on their way; what went wrong comes as an exception."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
