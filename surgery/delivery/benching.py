"""``bench``: what networks cost on this machine, in every runtime, layout, batch and size asked for; two of them timed in turn.

Both sides get the same treatment: the same optimisation, runtime, threads and inputs. Each runs in the layout in which a few rounds found
it quicker, and the layouts are named; then both take turns until their ratio is known, or time is up.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.backends import cudnn

from chansurg.surgery.counting import count
from chansurg.surgery.delivery.benchmark import Benchmark, LayerRow, Row, Setting, Side
from chansurg.surgery.delivery.machine import describe_machine
from chansurg.surgery.delivery.optimizing import optimize
from chansurg.surgery.delivery.runtimes import RUNTIMES, Inputs, Ready, Unavailable, forget_compiled, prepare
from chansurg.surgery.delivery.sites import Place, find_places
from chansurg.surgery.delivery.timing import Spread, Stopwatch, others_share, processor_times, ratio, seconds_in_turn
from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of, unwrapped, with_input_size

LAYOUTS: Mapping[str, torch.memory_format] = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_CHOOSING_ROUNDS = 5
_SEED = 0


@dataclass(frozen=True)
class _Way:
    """How everything is timed, the same for all settings."""

    layouts: Sequence[str]
    memory: bool
    seconds: float


def bench(
    model: nn.Module,
    against: nn.Module | None = None,
    *,
    runtimes: Sequence[str] = ("eager",),
    batch_sizes: Sequence[int] = (1,),
    input_sizes: Sequence[tuple[int, ...]] | None = None,
    devices: Sequence[str] = ("cpu",),
    dtypes: Sequence[str] = ("float32",),
    layouts: Sequence[str] = tuple(LAYOUTS),
    threads: int | None = None,
    optimized: bool = True,
    memory: bool = True,
    per_layer: bool = False,
    training: bool = False,
    seconds: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
) -> Benchmark:
    """Time a network's forward pass in eval mode, and another's in turn with it.

    >>> import chansurg
    >>> found = chansurg.bench(chansurg.load("cifar/resnet20"), memory=False, seconds=0.1)
    >>> [(row.setting.runtime, row.setting.batch_size) for row in found.rows]
    [('eager', 1)]

    Args:
        model: a network that takes one float tensor ``[B, C, H, W]``; it is not changed.
        against: the one that it is compared with, its original say; ``None`` times ``model`` alone.
        runtimes: of ``eager``, ``compile``, ``onnxruntime``, ``aoti`` and ``cuda-graph``.
        batch_sizes: images.
        input_sizes: each ``(H,)``, ``(H, W)`` or ``(C, H, W)`` in pixels; the record's of ``model`` where left out.
        devices: ``cpu``, ``cuda``, ``cuda:1``, …
        dtypes: of ``float32``, ``bfloat16`` and ``float16``; weights and inputs are cast.
        layouts: of ``contiguous`` (NCHW) and ``channels_last``; of several, each side runs in the one it is quicker in.
        threads: for torch and ONNX Runtime; what torch is set to where left out.
        optimized: time what :func:`chansurg.optimize` makes of both; else both as they are.
        memory: measure the most memory that a forward pass needs too.
        per_layer: also time, each by itself, the modules that differ.
        training: time a training step, forward and backward in train mode, of both as they are; in ``eager`` and ``compile`` alone.
        seconds: how long a setting may go on after ten rounds while its ratio is not known well enough.
        progress: called with the number of settings done, and how many there are.

    Returns:
        A row for each setting. A runtime that is not installed, or fails, has one with the reason.

    Raises:
        InputError: for a name or number that cannot be used, or where a network cannot run on the input size.
    """
    _check(runtimes, batch_sizes, devices, dtypes, layouts, threads, seconds)
    if per_layer and against is None:
        raise _refused("Layers are compared with another network's, and none is given.", "per_layer", "Pass the original as well.")
    if per_layer and training:
        raise _refused("Layers are timed in eval mode alone.", "per_layer", "Leave one of per_layer and training out.")
    networks = [copy.deepcopy(unwrapped(network)).train(training) for network in (model, against) if network is not None]
    sizes = [
        with_input_size(record_of(model), size).preprocessing.input_size
        for size in (input_sizes if input_sizes is not None else [record_of(model).preprocessing.input_size])
    ]
    settings = [
        Setting(runtime, device, dtype, size, batch_size)
        for device, dtype, runtime, size, batch_size in itertools.product(devices, dtypes, runtimes, sizes, batch_sizes)
    ]
    allowed = {size: _macs_allow(networks, size) for size in sizes}
    way = _Way(tuple(layouts), memory, seconds)
    treated = _Treated(networks, optimized and not training)
    before = processor_times()
    rows: list[Row] = []
    layers: list[LayerRow] = []
    notes: list[str] = []
    with _threads(threads), cudnn.flags(enabled=True, benchmark=True, allow_tf32=cudnn.allow_tf32):
        used = torch.get_num_threads()
        for done, setting in enumerate(settings, 1):
            shape = (setting.batch_size, *setting.input_size)
            rows.append(_row(treated, [shape], setting, allowed[setting.input_size], way))
            if per_layer and rows[-1].reason is None:
                places = find_places(networks[0], networks[1], shape)
                if not places:
                    notes.append("No part of the two networks that differs has the same inputs and outputs in both.")
                layers += [_layer_row(treated, networks, place, setting, way) for place in places]
            if progress is not None:
                progress(done, len(settings))
    others = others_share(before, processor_times())
    machine = {device: describe_machine(device) for device in devices}
    return Benchmark(rows, layers, machine, used, optimized and not training, training, others, tuple(dict.fromkeys(notes)))


class _Treated:
    """The networks as they would be put to work, each in its own copy; kept for all settings that differ in nothing but their inputs."""

    def __init__(self, networks: Sequence[nn.Module], optimized: bool) -> None:
        self._networks = networks
        self._optimized = optimized
        self.sides = len(networks)
        self._kept: dict[tuple[int, str | None], nn.Module] = {}
        self._kept_for: tuple[str, ...] = ()

    def get(self, side: int, setting: Setting, layout: str | None) -> nn.Module:
        """One of the networks, on the device and in the dtype and layout; ``None`` for a runtime that chooses its own.

        Raises:
            Unavailable: where it cannot be optimised.
        """
        wanted = (setting.runtime, setting.device, setting.dtype)
        if self._kept_for != wanted:
            self._kept.clear()
            self._kept_for = wanted
        if (side, layout) not in self._kept:
            network = copy.deepcopy(self._networks[side]).to(torch.device(setting.device))
            if self._optimized:
                example = _inputs([(1, *setting.input_size)], replace(setting, dtype="float32"))[0]
                try:
                    network = optimize(network, example, runtime=setting.runtime, layout=layout)
                except InputError as error:
                    raise Unavailable(f"it cannot be optimised: {error.what}") from error
            network = network.to(dtype=DTYPES[setting.dtype])
            self._kept[side, layout] = network if layout is None else network.to(memory_format=LAYOUTS[layout])
        return self._kept[side, layout]


def _layer_row(treated: _Treated, networks: Sequence[nn.Module], place: Place, setting: Setting, way: _Way) -> LayerRow:
    parts = [network.get_submodule(place.path) for network in networks]
    allowed = _macs_allow(parts, place.inputs[0][1:]) if len(place.inputs) == 1 else None
    quick = replace(way, memory=False, seconds=way.seconds / 4)
    return LayerRow(place.path, place.kind, place.inputs, _row(treated, place.inputs, setting, allowed, quick, path=place.path))


def _row(treated: _Treated, shapes: Sequence[Sequence[int]], setting: Setting, allowed: float | None, way: _Way, *, path: str = "") -> Row:
    """Time the networks, or the parts of them at ``path``, on inputs of these shapes."""
    sides = range(treated.sides)
    if setting.runtime == "compile":
        forget_compiled()
    with tempfile.TemporaryDirectory(prefix="chansurg-bench-") as folder:
        ready: list[dict[str | None, Ready]] = []
        for side in sides:
            try:
                ready.append(_prepared(treated, side, path, shapes, setting, way, Path(folder) / str(side)))
            except Unavailable as why:
                whose = "" if len(sides) == 1 else ("the model: ", "the one it is compared with: ")[side]
                return Row(setting, allowed, reason=f"{whose}{why}")
        stopwatch = next(iter(ready[0].values())).stopwatch
        medians = _medians_by_layout(ready, stopwatch)
        best = [min(layouts, key=lambda layout: median.get(layout, 0.0)) for layouts, median in zip(ready, medians, strict=True)]
        chosen = [layouts[layout] for layouts, layout in zip(ready, best, strict=True)]
        ready.clear()
        taken = seconds_in_turn([one.call for one in chosen], limit=way.seconds, stopwatch=stopwatch)
        found = [
            Side(Spread.of(seconds), layout, {name or "": value for name, value in median.items()}, one.memory() if way.memory else None)
            for seconds, layout, median, one in zip(taken, best, medians, chosen, strict=True)
        ]
    compared = ratio(taken[1], taken[0]) if len(taken) > 1 else None
    return Row(setting, allowed, found[0], found[1] if len(found) > 1 else None, compared, len(taken[0]))


def _medians_by_layout(ready: Sequence[Mapping[str | None, Ready]], stopwatch: Stopwatch) -> list[dict[str | None, float]]:
    """Median seconds of each side in each layout, over a few rounds of all in turn; nothing where no side has a choice."""
    medians: list[dict[str | None, float]] = [{} for _ in ready]
    tried = [(side, layout) for side, layouts in enumerate(ready) for layout in layouts]
    if len(tried) > len(ready):
        taken = seconds_in_turn([ready[side][layout].call for side, layout in tried], rounds=_CHOOSING_ROUNDS, stopwatch=stopwatch)
        for (side, layout), seconds in zip(tried, taken, strict=True):
            medians[side][layout] = statistics.median(seconds)
    return medians


def _prepared(
    treated: _Treated, side: int, path: str, shapes: Sequence[Sequence[int]], setting: Setting, way: _Way, folder: Path
) -> dict[str | None, Ready]:
    """A network, or the part of it at ``path``, ready to run in each layout in which it does.

    Raises:
        Unavailable: where there is none.
    """
    ready: dict[str | None, Ready] = {}
    failed = Unavailable("there is no layout")
    for layout in way.layouts if RUNTIMES[setting.runtime].has_layouts else (None,):
        own = folder / (layout or "own")
        own.mkdir(parents=True)
        inputs = _inputs(shapes, setting)
        if layout is not None:
            inputs = tuple(x.to(memory_format=LAYOUTS[layout]) if x.ndim == 4 else x for x in inputs)
        try:
            part = _part(treated.get(side, setting, layout), path)
            ready[layout] = prepare(setting.runtime, part, inputs, own)
        except Unavailable as why:
            failed = why
    if not ready:
        raise failed
    return ready


def _part(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise Unavailable("optimising has joined it to another part") from None


def _inputs(shapes: Sequence[Sequence[int]], setting: Setting) -> Inputs:
    generator = torch.Generator().manual_seed(_SEED)
    drawn: list[Tensor] = [torch.randn(tuple(shape), generator=generator) for shape in shapes]
    return tuple(x.to(device=torch.device(setting.device), dtype=DTYPES[setting.dtype]) for x in drawn)


def _macs_allow(networks: Sequence[nn.Module], input_size: Sequence[int]) -> float | None:
    """The speed-up that multiply-accumulates allow; ``None`` for one network alone, or where they cannot all be counted.

    Raises:
        InputError: where one does not run on that size.
    """
    if len(input_size) != 3:
        return None
    counts = [count(network, tuple(input_size)) for network in networks]
    if len(counts) < 2 or any(one.stopped for one in counts) or not counts[0].macs:
        return None
    return counts[1].macs / counts[0].macs


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(
    runtimes: Sequence[str],
    batch_sizes: Sequence[int],
    devices: Sequence[str],
    dtypes: Sequence[str],
    layouts: Sequence[str],
    threads: int | None,
    seconds: float,
) -> None:
    for given, known, what in ((runtimes, RUNTIMES, "runtime"), (dtypes, DTYPES, "dtype"), (layouts, LAYOUTS, "layout")):
        for name in given:
            if name not in known:
                raise _refused(f"There is no {what} {name!r}.", what, f"Choose of: {', '.join(known)}.")
        if not given:
            raise _refused(f"No {what} is named.", what, f"Choose of: {', '.join(known)}.")
    if not batch_sizes or min(batch_sizes) < 1:
        raise _refused("A batch holds at least one image.", "batch size", "Pass whole numbers of at least 1.")
    if threads is not None and threads < 1:
        raise _refused(f"{threads} threads compute nothing.", "threads", "Pass a whole number of at least 1.")
    if not 0 <= seconds < float("inf"):
        raise _refused(f"{seconds} is no time.", "seconds", "Pass a number of seconds, 10 say.")
    for device in devices or ("",):
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            told = (str(error).strip() or "unknown").splitlines()[0]
            raise _refused(f"The device {device!r} cannot be used: {told}", "device", "Pass cpu, or a device that is there.") from error


def _refused(what: str, where: str, to_do: str) -> InputError:
    return InputError(what, where=where, not_done="Nothing was timed.", to_do=to_do)
