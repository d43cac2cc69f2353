"""The processes of a run: one, or several under ``torchrun``, and what they have to agree on. Accelerate does the work."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from chansurg.surgery.errors import ChansurgError, InputError
from chansurg.surgery.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
_T = TypeVar("_T")


class Processes:
    """This process among those of the run.

    Args:
        settings: of the run; its device and precision count here.

    Attributes:
        accelerator: Accelerate's.
        number: how many processes there are.
        index: which one this is.
        main: whether this is the one that writes and reports.
        device: where this one trains.

    Raises:
        InputError: where Accelerate is not installed, or the device cannot be used or cannot do the precision.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise InputError(
                "Training needs Accelerate, which is not installed.",
                where="the package accelerate",
                not_done="Nothing was trained.",
                to_do="Install it with `pip install chansurg[train]`.",
            ) from error
        there = torch.cuda.is_available()
        if settings.device == "cuda" and not there:
            raise InputError(
                "There is no CUDA device.", where="option --device", not_done="Nothing was trained.", to_do="Leave it out, or pass cpu."
            )
        if settings.precision == "fp16" and (settings.device == "cpu" or not there):
            raise InputError(
                "fp16 is trained on a GPU only.",
                where="option --precision",
                not_done="Nothing was trained.",
                to_do="Pass --precision bf16 or fp32, or train on a GPU.",
            )
        _forget_earlier_runs()
        self.accelerator: Accelerator = Accelerator(mixed_precision=_MIXED[settings.precision], cpu=settings.device == "cpu" or not there)
        self.number: int = self.accelerator.num_processes
        self.index: int = self.accelerator.process_index
        self.main = self.index == 0
        self.device: torch.device = self.accelerator.device

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return value if self.number == 1 else self._reduced(value, "mean")

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return value if self.number == 1 else self._reduced(value, "sum")

    def any(self, value: Tensor) -> Tensor:
        """For a tensor of bools, where it is true in any process."""
        return value if self.number == 1 else self._reduced(value.int(), "sum") > 0

    def _reduced(self, value: Tensor, how: str) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(value.detach(), how)
        return reduced

    def agree(self, wishes: list[bool], failure: ChansurgError | None) -> tuple[list[bool], ChansurgError | None]:
        """Each wish that any process has, and the first failure that any had; all processes get the same answer."""
        if self.number == 1:
            return wishes, failure
        flags = self.any(torch.tensor([*wishes, failure is not None], device=self.device)).tolist()
        if flags[-1]:
            from accelerate.utils import gather_object

            failure = next(error for error in gather_object([failure]) if error is not None)
        return flags[:-1], failure

    def first(self, do: Callable[[], _T]) -> _T:
        """What ``do`` returns in the main process, which alone runs it; where it fails there, it fails everywhere.

        Raises:
            ChansurgError: as ``do`` does.
        """
        if self.number == 1:
            return do()
        from accelerate.utils import broadcast_object_list

        told: list[object] = [None, None]
        if self.main:
            try:
                told[0] = do()
            except ChansurgError as error:
                told[1] = error
        broadcast_object_list(told)
        if isinstance(told[1], ChansurgError):
            raise told[1]
        return told[0]  # type: ignore[return-value]  # what the main process's ``do`` returned


def _forget_earlier_runs() -> None:
    """Accelerate keeps one state a process, and refuses a second run with another device or precision in it.

    What connects several processes is kept, for the next run in them, until they end.
    """
    from accelerate.state import AcceleratorState, GradientState

    connected = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not connected and "LOCAL_RANK" in os.environ:
        atexit.register(_disconnect)
    AcceleratorState._reset_state(reset_partial_state=not connected)
    GradientState._reset_state()


def _disconnect() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
