"""Calibration: a converted network fitted to the original on images without labels, segment by segment, in order of execution.

In every segment, first norms are re-estimated, then layers are solved in closed form, then the segment is trained for a few steps; in the
end all segments are trained together. Images that nothing is fitted on decide each time whether it is kept; so no step leaves what it
fits further from the original than it was, and a segment that is the original's function already is left as it is, bit for bit.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chansurg.surgery.calibration.best import Best
from chansurg.surgery.calibration.kept import Kept
from chansurg.surgery.calibration.norms import norms_in, reestimate, settle
from chansurg.surgery.calibration.playing import LARGEST_BATCH, Carried, Player, Source, error
from chansurg.surgery.calibration.reconstruction import Reconstruction
from chansurg.surgery.calibration.refining import Descent, images_a_step, refine_together
from chansurg.surgery.calibration.refining import refine as refine_segment
from chansurg.surgery.calibration.segments import Segment, is_constant, joined, segments
from chansurg.surgery.calibration.units import units
from chansurg.surgery.drifting import drift_on, pictures
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.forwards.tracing import unchanged
from chansurg.surgery.images.unlabelled import HELD_OUT, Unlabelled
from chansurg.surgery.journal import Record
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.survey import Region, Survey, survey
from chansurg.surgery.survey.kinds import path_of

log = logging.getLogger(__name__)

EQUAL = 1e-5
"""A segment whose relative error is no larger computes what the original's does, up to rounding."""
SOLVING_MACS = 2.5e12
"""Multiply-accumulates that closed forms may take, about; fewer images are taken where a network is large."""
STEPS = 200
REFINING_MACS = 8e12
"""Steps of each segment, and of all together, where nothing else is said, and multiply-accumulates that all this may take."""


@dataclass(frozen=True)
class Fitted:
    """What became of one segment. Errors are relative, on images that nothing was fitted on.

    Args:
        path: where it ends.
        images: how many images it was fitted on.
        before: its error with what lies before it fitted already.
        solved: the error after re-estimated norms and closed forms.
        refined: the error in the end.
        layers: the layers that were solved.
        norms: whether re-estimated norms were kept.
    """

    path: str
    images: int
    before: float
    solved: float
    refined: float
    layers: tuple[str, ...] = ()
    norms: bool = False

    def as_json(self) -> dict[str, Any]:
        """JSON values; an error that is not finite is null."""
        return _finite({**vars(self), "layers": list(self.layers)})


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class Together:
    """What became of segments that were trained together. Errors are of their last output, relative, on images that nothing was fitted on.

    Args:
        path: of the module that they are parts of; empty for the network.
        images: how many images they were fitted on.
        before: the error with each segment fitted by itself.
        after: the error in the end; that of before where training gained nothing and was undone.
    """

    path: str
    images: int
    before: float
    after: float

    def as_json(self) -> dict[str, Any]:
        """JSON values; an error that is not finite is null."""
        return _finite(vars(self))


@dataclass(frozen=True)
class Calibration:
    """What calibrating came to.

    Args:
        images: how many images there were.
        held_out: how many of them nothing was fitted on.
        steps: of training, a segment, and as many of all together.
        segments: in order of execution.
        together: what training them together came to.
        untouched: parts that could not be compared, with the reason.
    """

    images: int
    held_out: int
    steps: int
    segments: tuple[Fitted, ...] = ()
    together: tuple[Together, ...] = ()
    untouched: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "images": self.images,
            "held_out": self.held_out,
            "steps": self.steps,
            "segments": [segment.as_json() for segment in self.segments],
            "together": [together.as_json() for together in self.together],
            "untouched": dict(self.untouched),
        }


def calibrate(
    original: nn.Module,
    converted: nn.Module,
    images: Unlabelled,
    *,
    refine: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Fit a converted network to the one it was converted from; its tensors change in place.

    Args:
        original: the network before its last conversion; it is not changed.
        converted: the network after it, with its record.
        images: images of the kind that the network was trained on.
        refine: steps of distillation behind the closed forms, segment by segment, and then of all segments together; 0 for closed forms
            alone. ``None`` takes 200, or as many as 8e12 multiply-accumulates allow.
        seed: draws positions and batches.
        progress: told how many parts of the work on a region are done, and of how many: its segments, and all of them together.

    Raises:
        InputError: where an image cannot be read.
    """
    record = record_of(converted)
    size = record.preprocessing.input_size
    steps = _affordable(record) if refine is None else refine
    parts = images.divided()
    surveys = survey(original, size), survey(converted, size)
    kept = Kept(surveys[0], record.journal[-1].edits if record.journal else ())
    fitted: list[Fitted] = []
    together: list[Together] = []
    untouched: dict[str, str] = {path or "(the network)": reason for path, reason in surveys[1].untraced.items()}
    with unchanged(original), eval_mode(original), eval_mode(converted), torch.no_grad():
        for theirs, ours in _regions(*surveys):
            if (calls := surveys[1].observed.get(ours.path, 0)) > 1:
                untouched[ours.path] = f"it is called {calls} times"
                continue
            cut = segments(*surveys, theirs, ours, kept)
            if not cut:
                untouched[ours.path or "(the network)"] = "nothing in it could be matched with the original"
                continue
            run = _Run((original, converted), (theirs, ours), parts, kept, (steps, images_a_step(size)), _solvable(record), seed)
            for number, segment in enumerate(cut, 1):
                fitted.append(run.fit(segment, last=segment is cut[-1]))
                if progress is not None:
                    progress(number, len(cut) + 1)
            if (told := run.together(cut)) is not None:
                together.append(told)
            if progress is not None:
                progress(len(cut) + 1, len(cut) + 1)
        if not fitted:
            _norms_alone(original, converted, parts)
    return Calibration(len(images), len(parts[1]), steps, tuple(fitted), tuple(together), untouched)


def _affordable(record: Record) -> int:
    """How many steps: each takes every segment there and back once, and then the whole network, beside the original's way there."""
    entry = record.journal[-1] if record.journal else None
    macs = 0 if entry is None else 6 * entry.after.get("macs", 0) + entry.before.get("macs", 0)
    return int(min(STEPS, REFINING_MACS // max(1, images_a_step(record.preprocessing.input_size) * macs)))


def _solvable(record: Record) -> int:
    """How many images closed forms may be taken from: each runs through most of both networks for every layer of a segment."""
    entry = record.journal[-1] if record.journal else None
    macs = 0 if entry is None else entry.before.get("macs", 0) + entry.after.get("macs", 0)
    return int(max(LARGEST_BATCH, SOLVING_MACS // max(1, 2 * macs)))


def _regions(original: Survey, converted: Survey) -> Iterator[tuple[Region, Region]]:
    by_path = {region.path: region for region in converted.regions}
    for region in original.regions:
        if region.path in by_path:
            yield region, by_path[region.path]


class _Run:
    """The fitting of one region."""

    def __init__(
        self,
        networks: tuple[nn.Module, nn.Module],
        regions: tuple[Region, Region],
        images: tuple[Unlabelled, Unlabelled],
        kept: Kept,
        training: tuple[int, int],
        solving: int,
        seed: int,
    ) -> None:
        self._networks = networks
        self._network = networks[1]
        self._regions = regions
        self._kept = kept
        self._steps, self._batch = training
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._players = Player(networks[0], regions[0]), Player(networks[1], regions[1])
        self._images = images
        self._solving = solving
        self._fitted: list[nn.Module] = []
        self._fitting, self._judging = self._carried()

    def _carried(self) -> tuple[Carried, Carried]:
        """The images to fit on and those to judge by, at the region's beginning."""
        shares = 1 - 1 / HELD_OUT, 1 / HELD_OUT
        fitting, judging = (
            Carried(*self._players, _sources(self._networks, self._regions, part), len(part), share, self._solving)
            for part, share in zip(self._images, shares, strict=True)
        )
        return fitting, judging

    def fit(self, segment: Segment, *, last: bool) -> Fitted:
        for carried in (self._fitting, self._judging):
            carried.begin(segment)
        before = self._error(segment)
        solved = refined = before
        layers: tuple[str, ...] = ()
        better_norms = False
        own = self._own(segment)
        modules = list(own.values())
        if before > EQUAL:
            self._fitted += modules
            best = Best(modules, before, lambda: self._error(segment))
            norms = norms_in(modules)
            if norms:
                reestimate(norms, lambda: self._play(segment))
                better_norms = best.keep()
            work = Reconstruction(self._networks, self._players, segment, self._fitting, self._judging, self._seed)
            found = units(self._network, self._regions[0], segment, self._kept)
            layers = tuple(unit.path for unit in found if unit.path in own and unit.norm_path in {*own, None} and work.fit(unit))
            layers = layers if best.keep() else ()
            solved = best.error
            if self._steps:
                refine_segment(self._players[1], segment, self._fitting, self._descent(modules, best))
                best.keep()
            refined = best.error
            if norms:
                settle(norms, lambda: self._play(segment))
                best.keep(allowed=EQUAL)
        images = self._fitting.images
        if not last:
            for carried in (self._fitting, self._judging):
                carried.end(segment)
        log.info("%s: relative error %.3f, after closed forms %.3f, after refining %.3f", segment.path, before, solved, refined)
        return Fitted(segment.path, images, before, solved, refined, layers, better_norms)

    def together(self, cut: Sequence[Segment]) -> Together | None:
        """Train all segments that were fitted, once more and together; nothing where one alone was, or the output is right already."""
        if not self._steps or len(cut) < 2 or not self._fitted:
            return None
        whole = joined(cut)
        self._fitting, self._judging = self._carried()
        for carried in (self._fitting, self._judging):
            carried.begin(whole)
        if (before := self._error(whole)) <= EQUAL:
            return None
        best = Best(self._fitted, before, lambda: self._error(whole))
        refine_together(self._players, whole, cut, self._fitting, self._descent(self._fitted, best))
        best.keep()
        if best.error < before and (norms := norms_in(self._fitted)):
            settle(norms, lambda: self._play(whole))
            best.keep(allowed=EQUAL)
        log.info("%s: relative error %.3f, after refining together %.3f", whole.path, before, best.error)
        return Together(self._regions[1].path, self._fitting.images, before, best.error)

    def _descent(self, modules: Sequence[nn.Module], best: Best) -> Descent:
        parameters = list({id(p): p for module in modules for p in module.parameters() if p.is_floating_point()}.values())
        return Descent(parameters, self._steps, self._batch, self._generator, best.look)

    def _own(self, segment: Segment) -> dict[str, nn.Module]:
        """The modules that the segment alone calls, by path, as far as they share no tensor with what lies outside of it."""
        part = set(segment.converted.nodes)
        root = self._network.get_submodule(self._regions[1].path)
        targets = [str(node.target) for node in self._regions[1].nodes if node.op == "get_attr" and not part.issuperset(node.users)]
        calls = [(path_of(node), node in part) for node in self._regions[1].nodes if node.op == "call_module"]
        elsewhere = {path for path, inside in calls if not inside}
        inside = {path: self._network.get_submodule(path) for path, called in calls if called and path not in elsewhere}
        below = {id(module) for found in inside.values() for module in found.modules()}
        others = [module for module in self._network.modules() if id(module) not in below]
        foreign = {id(tensor) for module in others for tensor in (*module._parameters.values(), *module._buffers.values())}
        foreign |= {id(operator.attrgetter(target)(root)) for target in targets if not is_constant(target)}
        return {path: found for path, found in inside.items() if foreign.isdisjoint(map(id, (*found.parameters(), *found.buffers())))}

    def _error(self, segment: Segment) -> float:
        return error(self._players[1], segment, self._judging)

    def _play(self, segment: Segment) -> None:
        for x in self._fitting.telling():
            self._players[1].output(segment.converted, x)


def _sources(networks: tuple[nn.Module, nn.Module], regions: tuple[Region, Region], images: Unlabelled) -> tuple[Source, Source]:
    """What goes into a region of each network: the images themselves, or what a module below gets of them."""
    place = next(networks[1].parameters(), torch.empty(0))

    def decoded(start: int, stop: int) -> Tensor:
        return next(images.between(start, stop).batches(stop - start, place.device)).to(place.dtype)

    def inside(network: nn.Module, path: str) -> Source:
        if not path:
            return decoded
        module = network.get_submodule(path)

        def taken(start: int, stop: int) -> Tensor:
            seen: list[Tensor] = []

            def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                seen.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).clone())

            handle = module.register_forward_pre_hook(see, with_kwargs=True)
            try:
                network(decoded(start, stop))
            finally:
                handle.remove()
            return seen[0]

        return taken

    return inside(networks[0], regions[0].path), inside(networks[1], regions[1].path)


def _norms_alone(original: nn.Module, converted: nn.Module, images: tuple[Unlabelled, Unlabelled]) -> None:
    """Where no part can be compared: norms are re-estimated if that brings the outputs nearer to the original's."""
    norms = norms_in([converted])
    if not norms:
        return
    place = next(converted.parameters())
    held_out = pictures(images[1])

    def play() -> None:
        for batch in images[0].batches(32, place.device):
            converted(batch.to(place.dtype))

    def apart() -> float:
        gap = drift_on(original, converted, (), held_out).outputs
        return math.inf if gap is None else gap

    best = Best([converted], apart(), apart)
    reestimate(norms, play)
    best.keep()
