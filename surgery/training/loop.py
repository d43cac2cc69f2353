"""The loop over steps and epochs: train, watch, validate, keep what is needed to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chansurg.surgery.errors import ChansurgError, Refusal
from chansurg.surgery.layer import Moment
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.training.averaging import WeightAverage
from chansurg.surgery.training.budget import Budget
from chansurg.surgery.training.checkpoints import Checkpoint, optimizer_state, restore_optimizer, tensors_below
from chansurg.surgery.training.evaluation import Evaluation, Tally
from chansurg.surgery.training.image_feed import Batch, ImageFeed, in_order
from chansurg.surgery.training.interruption import Interrupted, watched
from chansurg.surgery.training.mixing import Mixing
from chansurg.surgery.training.objective import Losses, Objective
from chansurg.surgery.training.ordering import Course
from chansurg.surgery.training.processes import Processes
from chansurg.surgery.training.run_folder import RunFolder
from chansurg.surgery.training.schedules import learning_rate, set_learning_rate
from chansurg.surgery.training.seeding import seed_of
from chansurg.surgery.training.settings import Settings

if TYPE_CHECKING:
    from torch.optim import Optimizer

VALIDATION_BATCH = 100
"""Images a batch, as `evaluate` takes them, so that both give the same numbers."""

_NOISE = 0x15
_SHOWN_EVERY = 0.25
_PARTS = ("loss", "task", "distillation", "recipe", "top1", "images")


class Diverged(Refusal):
    """The loss or the weights are not numbers any more; the state is not worth keeping."""


@dataclass(frozen=True)
class Standing:
    """Where a run stands, for whoever watches it.

    Args:
        step: optimizer steps done.
        steps: of the whole run.
        epoch: the epoch, from 1.
        epochs: of the whole run.
        loss: mean over the epoch so far.
        top1: on training images, over the epoch so far, in per cent.
        images_per_second: over the epoch so far, all processes together, validation left out.
        seconds_left: until the run's end, at that pace.
        metrics: the epoch's line, where it has just ended.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    top1: float
    images_per_second: float
    seconds_left: float
    metrics: Mapping[str, Any] | None = None


@dataclass
class Training:
    """One run, ready to go.

    Args:
        network: the network itself, without wrappers.
        trained: what is called in training: the network, wrapped for several processes or compiled.
        settings: of the run.
        course: its division into steps.
        peak: highest learning rate.
        new_first: steps at the start in which only new layers are trained.
        processes: who takes part.
        images: training images.
        validation: images for validation, where there are any.
        objective: what is minimised.
        optimizer: as Accelerate prepared it.
        mixing: mixes batches, where asked for.
        average: of the weights, where asked for.
        steering: towards a budget, where asked for.
        folder: where the run is kept; ``None`` keeps nothing.
        finished: a network as it is written, with its record, from the one in training and the metrics reached.
        progress: called now and then, in the main process.
        step: optimizer steps done.
        best: the metrics of the epoch that was best on the images for validation.
        metrics: those of the last epoch.
        best_weights: of the best epoch, where they are wanted and no folder keeps them.
    """

    network: nn.Module
    trained: nn.Module
    settings: Settings
    course: Course
    peak: float
    new_first: int
    processes: Processes
    images: ImageFeed
    validation: ImageFeed | None
    objective: Objective
    optimizer: Optimizer
    mixing: Mixing | None
    average: WeightAverage | None
    steering: Budget | None
    folder: RunFolder | None
    finished: Callable[[nn.Module, Mapping[str, Any]], nn.Module]
    progress: Callable[[Standing], None] | None = None
    step: int = 0
    best: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = torch.zeros(len(_PARTS), dtype=torch.float64, device=self.processes.device)
        self._unread: list[Tensor] = []
        self._seconds = 0.0
        self._since = self._shown = self._saved = time.monotonic()
        self._pressure: float | None = None

    @property
    def result(self) -> nn.Module:
        """The network that validation sees and that is written: the average, where there is one."""
        return self.network if self.average is None else self.average.model

    def run(self) -> None:
        """Train from the current step to the end.

        Raises:
            Interrupted: where somebody asked to stop; the state is saved.
            InputError: where an image cannot be read; the state is saved.
            Refusal: where the loss is not a number any more, a checkpoint cannot be written, or a worker process died.
        """
        stream = self.images.batches(self.course.batches(self.step))
        self._since = self._saved = time.monotonic()
        with watched() as wish:
            while self.step < self.course.steps:
                batches, failure = self._fetched(stream)
                (stop, save), failure = self.processes.agree([wish.stop, self._save_is_due()], failure or self._divergence())
                if isinstance(failure, Diverged):
                    raise failure
                if stop or save or failure is not None:
                    self._save()
                if failure is not None:
                    raise failure
                if stop:
                    raise Interrupted(self._stopped())
                self._take_step(batches)
                self.step += 1
                if self.course.ends_epoch(self.step):
                    self._end_epoch()
                elif self.progress is not None and time.monotonic() - self._shown > _SHOWN_EVERY:
                    self._show(None)

    def _fetched(self, stream: Iterator[Batch]) -> tuple[list[Batch], ChansurgError | None]:
        try:
            return [next(stream) for _ in range(self.course.batches_a_step)], None
        except ChansurgError as error:
            return [], error

    def _take_step(self, batches: list[Batch]) -> None:
        accelerator, settings = self.processes.accelerator, self.settings
        set_learning_rate(self.optimizer, self.rate(self.step), only_new=self.step < self.new_first)
        moment = self._moment()
        for number, (images, labels) in enumerate(batches):
            torch.manual_seed(seed_of(_NOISE, settings.seed, self.step, number, self.processes.index))
            targets = labels
            if self.mixing is not None:
                batch = self.step * len(batches) + number
                images, targets = self.mixing(images, labels, batch=batch, process=self.processes.index)
            if settings.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            closes = number == len(batches) - 1
            with nullcontext() if closes else accelerator.no_sync(self.trained):
                with accelerator.autocast():
                    losses = self.objective(images, targets, moment, closes_step=closes)
                accelerator.backward(losses.total / len(batches))
            self._count(losses, labels)
        if settings.clip_norm is not None:
            accelerator.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.network)

    def _moment(self) -> Moment:
        steps = self.course.steps
        values: dict[str, Any] = {"steps": steps, "epoch": min(1.0, self.course.steps_an_epoch / steps)}
        values |= {"mean": self.processes.mean, "any": self.processes.any}
        moment = Moment((self.step + 1) / steps, **values)
        if self.steering is not None:
            self._pressure = self.steering.before_step(moment)
            moment = Moment((self.step + 1) / steps, pressure=self._pressure, **values)
        return moment

    def rate(self, step: int) -> float:
        """The learning rate of one step.

        Raises:
            InputError: where warm-up and run do not fit each other.
        """
        settings, epoch = self.settings, self.course.steps_an_epoch
        return learning_rate(
            step,
            steps=self.course.steps,
            peak=self.peak,
            schedule=settings.schedule,
            warmup_steps=round(settings.warmup_epochs * epoch),
            milestones=[round(at * epoch) for at in settings.milestone_epochs],
            gamma=settings.gamma,
            floor=settings.floor_lr,
        )

    def _count(self, losses: Losses, labels: Tensor) -> None:
        correct = (losses.outputs.argmax(dim=1) == labels).sum()
        total = losses.total.detach()
        parts = [part.double() * len(labels) for part in (total, losses.task, losses.distillation, losses.recipe)]
        self._sums += torch.stack([*parts, correct.double(), torch.full_like(parts[0], len(labels))])
        self._unread.append(total)

    def _divergence(self) -> Diverged | None:
        """What is wrong with the losses since the last look; on a GPU, where looking means waiting, it is looked now and then."""
        waits = self.processes.device.type == "cuda"
        if not self._unread or (waits and time.monotonic() - self._shown < _SHOWN_EVERY and len(self._unread) < 50):
            return None
        losses = torch.stack(self._unread).tolist()
        self._unread.clear()
        bad = next((index for index, loss in enumerate(losses) if not abs(loss) < float("inf")), None)
        if bad is None:
            return None
        step = self.step - (len(losses) - bad - 1) // self.course.batches_a_step
        return self._diverged(f"The loss is not a number any more ({losses[bad]}).", step)

    def _diverged(self, what: str, step: int) -> Diverged:
        reached = "There is no checkpoint." if self.folder is None else f"The last good checkpoint is kept in {self.folder.last}."
        return Diverged(
            what,
            where=f"step {step} of {self.course.steps}, epoch {self._epoch(step)}, learning rate {self.rate(max(step - 1, 0)):.3g}",
            not_done=f"The run stopped there, and no model file was written. {reached}",
            to_do="Begin anew with a lower --lr, a --warmup-epochs, or --clip-norm 1, and --restart.",
        )

    def _epoch(self, step: int) -> int:
        """The epoch, from 1, that a number of steps done lies in."""
        return max(0, step - 1) // self.course.steps_an_epoch + 1

    def _require_sound(self) -> None:
        """Raise in all processes where the losses of any, or the weights, are not numbers."""
        self._shown = float("-inf")
        _, failure = self.processes.agree([], self._divergence())
        if failure is None:
            floating = [tensor for tensor in self.network.state_dict().values() if tensor.is_floating_point()]
            if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in floating]).all()):
                failure = self._diverged("The weights are not numbers any more.", self.step)
        if failure is not None:
            raise failure

    def _end_epoch(self) -> None:
        self._require_sound()
        line = self._line()
        epoch, last = self._epoch(self.step), self.step == self.course.steps
        try:
            result = self.validate() if last or epoch % self.settings.val_every == 0 else None
        except Refusal as refusal:
            raise self._diverged(refusal.what, self.step) from refusal
        line |= {f"val_{key}": value for key, value in ({} if result is None else result.as_json()).items() if key != "images"}
        if self.steering is not None:
            line |= {"pressure": self._pressure, "budget": self.steering.summary()}
        better = result is not None and (self.best is None or line["val_top1"] > self.best["val_top1"])
        if better:
            self.best = line
            if self.folder is None and self.settings.keep == "best":
                self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self.result.state_dict().items()}
        self.metrics = line
        self._show(line)
        self._sums.zero_()
        self._seconds, self._since = 0.0, time.monotonic()

        def keep() -> None:
            if self.folder is not None:
                if better:
                    self.folder.write_best(self.finished(self.result, line), line)
                self.folder.add_metrics(line)

        self.processes.first(keep)
        self._save()

    def _line(self) -> dict[str, Any]:
        """What the epoch came to, over all processes."""
        sums = self.processes.total(self._sums).tolist()
        images, seconds = sums[-1], self._time()
        means = {f"train_{name}": value / images for name, value in zip(_PARTS[:4], sums, strict=False)}
        return {
            "epoch": self._epoch(self.step),
            "step": self.step,
            "learning_rate": self.rate(self.step - 1),
            **means,
            "train_top1": 100 * sums[4] / images,
            "images_per_second": images / seconds,
            "seconds": seconds,
        }

    def validate(self) -> Evaluation | None:
        """The result on the images for validation, in float32 and eval mode; ``None`` where there are none.

        Raises:
            Refusal: where the outputs are not numbers.
        """
        if self.validation is None:
            return None
        start, network = time.perf_counter(), self.result
        share = in_order(len(self.validation.images), VALIDATION_BATCH)[self.processes.index :: self.processes.number]
        tally = Tally()
        with eval_mode(network), torch.no_grad():
            for images, labels in self.validation.batches(share):
                tally.add(network(images), labels)
        pooled = tally.pooled(self.processes.total, self.processes.device)
        return pooled.result(time.perf_counter() - start, where=self.validation.images.where)

    def _time(self) -> float:
        """Seconds that the epoch has taken, up to now."""
        if self.processes.device.type == "cuda":
            torch.cuda.synchronize(self.processes.device)
        return self._seconds + time.monotonic() - self._since

    def _show(self, metrics: Mapping[str, Any] | None) -> None:
        self._shown = time.monotonic()
        if self.progress is None or not self.processes.main:
            return
        loss, *_, correct, images = self._sums.tolist()
        taken = self._seconds + time.monotonic() - self._since if metrics is None else metrics["seconds"]
        pace = max(taken, 1e-9) / (images * self.processes.number)
        left = (self.course.steps - self.step) * self.course.images_a_step * pace
        epochs = self._epoch(self.course.steps)
        now = (self.step, self.course.steps, self._epoch(self.step), epochs)
        self.progress(Standing(*now, loss / images, 100 * correct / images, 1 / pace, left, metrics))

    def _save_is_due(self) -> bool:
        return self.folder is not None and time.monotonic() - self._saved > 60 * self.settings.checkpoint_minutes

    def _stopped(self) -> str:
        at = f"step {self.step} of {self.course.steps}"
        return f"{at}; the state is saved" if self.folder is not None else f"{at}; nothing was kept"

    def _save(self) -> None:
        """Keep the state; done in all processes, as what they have counted is added up.

        Raises:
            Refusal: where the weights are not numbers any more, or the disk fails.
        """
        if self.folder is None:
            return
        self._require_sound()
        sums = self.processes.total(self._sums).tolist()
        folder, seconds = self.folder, self._time()
        self.processes.first(lambda: folder.write_last(self._checkpoint(folder, sums, seconds)))
        self._saved = time.monotonic()

    def _checkpoint(self, folder: RunFolder, sums: list[float], seconds: float) -> Checkpoint:
        optimizer, optimizer_facts = optimizer_state(self.optimizer)
        tensors = dict(tensors_below("model", self.network.state_dict()))
        tensors |= tensors_below("optimizer", optimizer)
        tensors |= tensors_below("average", {} if self.average is None else self.average.state())
        scaler = self.processes.accelerator.scaler
        facts = {
            "step": self.step,
            "sums": sums,
            "seconds": seconds,
            "best": self.best,
            "metrics": self.metrics,
            "metrics_bytes": folder.metrics_bytes(),
            "optimizer": optimizer_facts,
            "scaler": None if scaler is None else scaler.state_dict(),
            "steering": None if self.steering is None else self.steering.state(),
        }
        return Checkpoint(tensors, facts)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where the checkpoint was taken."""
        facts = checkpoint.facts
        self.network.load_state_dict(checkpoint.part("model"))
        restore_optimizer(self.optimizer, checkpoint.part("optimizer"), facts["optimizer"])
        if self.average is not None:
            self.average.restore(checkpoint.part("average"))
        if self.processes.accelerator.scaler is not None:
            self.processes.accelerator.scaler.load_state_dict(facts["scaler"])
        if self.steering is not None:
            self.steering.restore(facts["steering"])
        self.step, self.best, self.metrics = int(facts["step"]), facts["best"], facts["metrics"]
        self._seconds = float(facts["seconds"])
        if self.processes.main:
            self._sums.copy_(torch.tensor(facts["sums"], dtype=torch.float64))
