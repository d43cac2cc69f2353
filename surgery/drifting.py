"""How far a converted network has drifted from the one it came from, block by block, before any training.

Both run on the same inputs in eval mode. What is told of a tensor is its relative error: the Euclidean norm of the difference, over all
inputs, by that of the original. Zero is the same function, bit for bit; at one the original is as good as lost.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chansurg.surgery.counting import count
from chansurg.surgery.drift import IMAGES, NOISE, Drift, ran_on
from chansurg.surgery.errors import ChansurgError
from chansurg.surgery.files.provenance import record_of, unwrapped, with_input_size
from chansurg.surgery.forwards.tracing import unchanged
from chansurg.surgery.images.opening import opened
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.nested import tensors_in
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.landmarks import landmarks

if TYPE_CHECKING:
    from chansurg.surgery.images.unlabelled import Unlabelled

NOISE_INPUTS, NOISE_MACS = 8, 5 * 10**9
"""Inputs of normal noise, at most, and multiply-accumulates that they may cost; one is run however much it costs."""
_BATCH_PIXELS = 8 * 224 * 224
_DIGITS = 4
"""Significant digits told: what a machine's order of adding up changes lies behind them."""


@dataclass(frozen=True)
class Inputs:
    """What networks are compared on.

    Args:
        kind: see :class:`~chansurg.surgery.drift.Drift`.
        count: how many there are.
        batches: gives them, ``[B, C, H, W]`` each, the same ones every time.
    """

    kind: str
    count: int
    batches: Callable[[], Iterator[Tensor]]

    def __str__(self) -> str:
        return ran_on(self.kind, self.count)


def noise(input_size: Sequence[int], number: int = NOISE_INPUTS, *, seed: int = 0) -> Inputs:
    """Inputs drawn from a normal distribution: preprocessed images have its mean and variance, and nothing else of it.

    Args:
        input_size: ``(C, H, W)``.
        number: how many.
        seed: of the numbers.
    """
    size = _batch_size(input_size)

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, number, size):
            yield torch.randn(min(size, number - start), *input_size, generator=generator)

    return Inputs(NOISE, number, batches)


def affordable_noise(macs: int, most: int = NOISE_INPUTS, budget: int = NOISE_MACS) -> int:
    """How many inputs of noise a network of so many multiply-accumulates is given; one at least."""
    return max(1, min(most, budget // max(macs, 1)))


def pictures(images: Unlabelled, kind: str = IMAGES) -> Inputs:
    """Images, as a network wants them; ``kind`` is what to call them."""
    return Inputs(kind, len(images), lambda: images.batches(_batch_size(images.preprocessing.input_size)))


def _batch_size(input_size: Sequence[int]) -> int:
    return max(1, min(64, _BATCH_PIXELS // max(1, math.prod(input_size[1:]))))


def drift(
    original: nn.Module,
    converted: nn.Module,
    data: Unlabelled | str | os.PathLike[str] | None = None,
    *,
    samples: int = 128,
    input_size: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Drift:
    """How far a converted network is from its original.

    Args:
        original: in any wrapper, on any device.
        converted: likewise.
        data: images without labels to run both on, as :func:`~chansurg.surgery.images.unlabelled.open_unlabelled` reads them; without them
            it is normal noise.
        samples: how many images are taken.
        input_size: ``(C, H, W)``, ``(H, W)`` or ``(H,)`` in pixels; the original's own where left out.
        seed: of the noise, or of the choice of images.

    Raises:
        InputError: where the input size is impossible for the original, or images cannot be read.
    """
    original, converted = unwrapped(original), unwrapped(converted)
    preprocessing = with_input_size(record_of(original), input_size).preprocessing
    size = preprocessing.input_size
    images = opened(data, preprocessing, samples, seed)
    inputs = noise(size, affordable_noise(count(original, size).macs), seed=seed) if images is None else pictures(images)
    return drift_on(original, converted, landmarks(survey(original, size)), inputs)


class Reference:
    """What a network puts out on some inputs, taken down, so that the network itself may be changed afterwards.

    Args:
        network: on any device.
        paths: of its blocks.
        inputs: few enough that what the blocks put out can be kept.
    """

    def __init__(self, network: nn.Module, paths: Iterable[str], inputs: Inputs) -> None:
        self._paths, self._inputs = list(paths), inputs
        self._runs: list[Run] = []
        self._failed: Drift | None = None
        try:
            self._runs = [run(network, self._paths, batch) for batch in inputs.batches()]
        except ChansurgError:
            raise
        except Exception as error:  # a network may fail in any way it likes
            self._failed = _unmeasured(inputs, error)

    def drift(self, converted: nn.Module) -> Drift:
        """How far another network is from it."""
        return self._failed or _drift(self._runs, converted, self._paths, self._inputs)


def drift_on(original: nn.Module, converted: nn.Module, paths: Iterable[str], inputs: Inputs) -> Drift:
    """How far a converted network is from its original, on inputs that are at hand, at the modules of these paths."""
    paths = list(paths)
    return _drift((run(original, paths, batch) for batch in inputs.batches()), converted, paths, inputs)


def _drift(expected: Iterable[Run], converted: nn.Module, paths: Sequence[str], inputs: Inputs) -> Drift:
    gaps = _Gaps()
    try:
        for before, batch in zip(expected, inputs.batches(), strict=True):
            gaps.add(before, run(converted, paths, batch))
    except ChansurgError:
        raise
    except Exception as error:  # a network may fail in any way it likes
        return _unmeasured(inputs, error)
    return gaps.drift(inputs)


def _unmeasured(inputs: Inputs, error: Exception) -> Drift:
    """What to tell where a network does not run on the inputs."""
    first = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return Drift(inputs.kind, 0, reason=f"it does not run on {inputs.kind}: {type(error).__name__}{': ' if first else ''}{first}")


@dataclass(frozen=True)
class Run:
    """What a network put out for one batch.

    Args:
        blocks: path -> the tensors of each of the module's calls, in order.
        outputs: the floating-point tensors of the output.
    """

    blocks: Mapping[str, list[Tensor]]
    outputs: list[Tensor]


@torch.no_grad()
def run(network: nn.Module, paths: Iterable[str], batch: Tensor) -> Run:
    """Run a network on a batch in eval mode; nothing of it is changed, and no random number drawn.

    Args:
        network: on any device.
        paths: modules whose outputs are kept; those that the network does not have are passed over.
        batch: ``[B, C, H, W]``.
    """
    modules = dict(network.named_modules())
    seen: dict[str, list[Tensor]] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # What runs behind a block may write into what it put out.
            seen.setdefault(path, []).extend(tensor.clone() for tensor in _floating(output))

        return hook

    handles = [modules[path].register_forward_hook(keep(path)) for path in paths if path in modules]
    home = next((p for p in network.parameters() if p.is_floating_point()), batch)
    try:
        with unchanged(network), eval_mode(network), torch.random.fork_rng(devices=[]):
            return Run(seen, _floating(network(batch.to(device=home.device, dtype=home.dtype))))
    finally:
        for handle in handles:
            handle.remove()


def _floating(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


class _Gaps:
    """How far two networks' runs are apart, added up over batches."""

    def __init__(self) -> None:
        self._blocks: dict[str, _Gap] = {}
        self._outputs = _Gap()
        self._agreed: list[bool] = []

    def add(self, original: Run, converted: Run) -> None:
        """Take in what both put out for one batch."""
        for path, expected in original.blocks.items():
            self._blocks.setdefault(path, _Gap()).add(expected, converted.blocks.get(path, []))
        self._outputs.add(original.outputs, converted.outputs)
        first = (*original.outputs[:1], *converted.outputs[:1])
        if len(first) == 2 and first[0].shape == first[1].shape and first[0].ndim == 2:
            self._agreed += (first[0].argmax(1) == first[1].argmax(1).to(first[0].device)).tolist()

    def drift(self, inputs: Inputs) -> Drift:
        """What it came to."""
        return Drift(
            kind=inputs.kind,
            inputs=inputs.count,
            blocks={path: gap.relative for path, gap in self._blocks.items() if gap.comparable},
            outputs=self._outputs.relative,
            agreement=rounded(sum(self._agreed) / len(self._agreed)) if self._agreed else None,
        )


class _Gap:
    """Sums of squares of one module's outputs."""

    def __init__(self) -> None:
        self.comparable = True
        self._difference = self._size = 0.0

    def add(self, expected: Sequence[Tensor], actual: Sequence[Tensor]) -> None:
        shapes = [[tensor.shape for tensor in side] for side in (expected, actual)]
        self.comparable = self.comparable and bool(expected) and shapes[0] == shapes[1]
        if self.comparable:
            for p, q in zip(expected, actual, strict=True):
                wanted = p.double()
                self._difference += (wanted - q.double().to(p.device)).square().sum().item()
                self._size += wanted.square().sum().item()

    @property
    def relative(self) -> float | None:
        """The relative error; ``None`` where it is not finite, or the tensors cannot be compared."""
        if not self.comparable:
            return None
        error = math.sqrt(self._difference / self._size) if self._size and self._difference else math.sqrt(self._difference)
        return rounded(error) if math.isfinite(error) else None


def rounded(number: float) -> float:
    """A number in a few significant digits, so that one conversion writes one file on most machines."""
    return float(f"{number:.{_DIGITS}g}")
