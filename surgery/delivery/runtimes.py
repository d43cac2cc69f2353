"""The runtimes that a network can be timed in: from a module and an example to a call that is ready to be timed.

A runtime that is not installed, has no compiler, or fails on the network raises :class:`Unavailable` with the reason, which becomes a row
of the table. Everything here is warm when it comes back: it ran once, on the very input that it will be timed on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.delivery.formats import FORMATS, Order, quiet
from chansurg.surgery.delivery.memory import Memory, memory_of_child, memory_of_torch
from chansurg.surgery.delivery.timing import Stopwatch, stopwatch_for, wall_clock
from chansurg.surgery.nested import tensors_in

Inputs = tuple[Tensor, ...]

_ONNX_FLOAT = 1  # TensorProto.FLOAT
_WARM_UPS = 3


class Unavailable(Exception):
    """Why a network cannot be timed in a runtime, in one sentence."""


@dataclass(frozen=True)
class Ready:
    """A network that runs.

    Args:
        call: one forward pass on the example.
        stopwatch: what takes its time.
        memory: measures the most memory that a forward pass needs, on demand.
    """

    call: Callable[[], object]
    stopwatch: Stopwatch
    memory: Callable[[], Memory]


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Args:
        prepare: from a network in eval mode, its inputs on its device, and a folder for files of its own to a network that runs.
        has_layouts: whether it runs tensors in the layout they come in; if not, it chooses its own.
        trains: whether it runs backward too.
    """

    prepare: Callable[[nn.Module, Inputs, Path], Ready]
    has_layouts: bool = True
    trains: bool = False


def forget_compiled() -> None:
    """Let go of everything that ``torch.compile`` has made; what has been compiled too often is run uncompiled, and does not say so."""
    torch._dynamo.reset()


def prepare(runtime: str, network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    """Make a network ready to be timed.

    Args:
        runtime: a name in ``RUNTIMES``.
        network: on its inputs' device, in their dtype. In eval mode its forward pass is made ready; in train mode a training step: forward
            and backward, from the mean of what it puts out.
        inputs: what it is called on; of a whole network one ``[B, C, H, W]``.
        folder: an empty folder that stays until the timing is over.

    Raises:
        Unavailable: where it does not run there.
    """
    if network.training and not RUNTIMES[runtime].trains:
        raise Unavailable("a training step is not timed there")
    try:
        with quiet():
            ready = RUNTIMES[runtime].prepare(network, inputs, folder)
            ready.call()
    except Unavailable:
        raise
    except Exception as error:  # exporters and compilers fail in every way there is
        told = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise Unavailable(f"{runtime} fails on it: {type(error).__name__}: {told}") from error
    return ready


def _eager(network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    return _of_torch(network, inputs, network)


def _compiled(network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    return _of_torch(torch.compile(network, dynamic=False), inputs, network)


def _aot_inductor(network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    path = _exported("aoti", network, inputs, folder)
    return _of_torch(FORMATS["aoti"].open(path, inputs[0].device), inputs, network)


def _cuda_graph(network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    """The kernels of eager, recorded once and launched as one (``torch.cuda.CUDAGraph``); warmed up on a stream of its own, as it asks."""
    if inputs[0].device.type != "cuda":
        raise Unavailable("CUDA graphs need a CUDA device")
    cuda: Any = torch.cuda  # its streams are not typed
    device = inputs[0].device
    with cuda.device(device), torch.inference_mode():
        aside, graph = cuda.Stream(), cuda.CUDAGraph()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(_WARM_UPS):
                network(*inputs)
        cuda.current_stream().wait_stream(aside)
        with cuda.graph(graph):
            kept = network(*inputs)

    def replay(_keeping: object = (network, inputs, kept)) -> None:
        graph.replay()

    return Ready(replay, stopwatch_for(str(device)), lambda: Memory(None, "a CUDA graph keeps its tensors in a pool of its own"))


def _of_torch(forward: Callable[..., object], inputs: Inputs, network: nn.Module) -> Ready:
    def infer() -> object:
        with torch.inference_mode():
            return forward(*inputs)

    def train() -> None:
        network.zero_grad(set_to_none=True)
        outputs = [tensor.float().mean() for tensor in tensors_in(forward(*inputs)) if tensor.is_floating_point()]
        torch.autograd.backward(torch.stack(outputs).sum())

    call = train if network.training else infer
    return Ready(call, stopwatch_for(str(inputs[0].device)), partial(memory_of_torch, call, network, inputs[0].device))


def _onnx_runtime(network: nn.Module, inputs: Inputs, folder: Path) -> Ready:
    path = _exported("onnx", network, inputs, folder)
    runtime: Any = importlib.import_module("onnxruntime")
    x = inputs[0].detach().contiguous()
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(x.device.type, "none")
    if provider not in runtime.get_available_providers():
        raise Unavailable(f"this onnxruntime has no provider for {x.device.type}; it has {', '.join(runtime.get_available_providers())}")
    if x.dtype != torch.float32:
        raise Unavailable("nothing but float32 is timed in ONNX Runtime")
    threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), _session_options(runtime, threads), providers=[provider])
    # Bound to memory that is there already: copying in and out is no part of the network.
    binding, where = session.io_binding(), (x.device.type, x.device.index or 0)
    given = session.get_inputs()[0].name
    binding.bind_input(given, *where, element_type=_ONNX_FLOAT, shape=tuple(x.shape), buffer_ptr=x.data_ptr())
    for output in session.get_outputs():
        binding.bind_output(output.name, *where)

    def call(_keeping: object = x) -> None:
        session.run_with_iobinding(binding)

    # It runs on a stream and on threads of its own, and returns when it is done: the clock on the wall is the one that fits both devices.
    return Ready(call, wall_clock, partial(memory_of_child, path, tuple(x.shape), threads, x.device.type))


def _exported(name: str, network: nn.Module, inputs: Inputs, folder: Path) -> Path:
    """The network as a file of a format, for inputs of just these shapes."""
    form = FORMATS[name]
    if (missing := form.missing()) is not None:
        raise Unavailable(f"{missing[0]}; {missing[1]}")
    if len(inputs) != 1:
        raise Unavailable("parts that take more than one tensor are not exported")
    with torch.no_grad():
        outputs = len(tensors_in(network(*inputs)))
    path = folder / f"network{form.suffix}"
    form.write(Order(network.requires_grad_(False), inputs[0], False, outputs, ""), path)
    return path


def _session_options(runtime: Any, threads: int) -> Any:
    """Options of an ONNX Runtime session whose threads do not go on spinning when its turn is over, to the loss of the next.

    Args:
        runtime: the module ``onnxruntime``.
        threads: how many work on one operator; operators run one after the other.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


RUNTIMES: Mapping[str, Runtime] = {
    "eager": Runtime(_eager, trains=True),
    "compile": Runtime(_compiled, trains=True),
    "onnxruntime": Runtime(_onnx_runtime, has_layouts=False),
    "aoti": Runtime(_aot_inductor),
    "cuda-graph": Runtime(_cuda_graph),
}
