"""The folder of a run, ``OUT.run``: what was asked for, what was measured, and the checkpoints.

=================== ==========================================================================================
``settings.json``   everything needed to repeat the run
``metrics.jsonl``   one line an epoch
``tensorboard/``    the same for TensorBoard, where it is installed
``last/``           the state to go on from
``best/``           the model file of the best epoch on ``val``, and its metrics
``results.json``    what was reached, once the run is finished and its model file written
``.lock``           held while a run goes on here; the system lets go of it when the process ends, however it ends
=================== ==========================================================================================
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor, nn

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.modelfile import save
from chansurg.surgery.files.writing import check_target, write_whole
from chansurg.surgery.recipe import flag
from chansurg.surgery.training.checkpoints import (
    Checkpoint,
    disk_failed,
    read_checkpoint,
    recovered,
    remove_checkpoint,
    replace_folder,
    write_checkpoint,
)
from chansurg.surgery.training.settings import WITHOUT_EFFECT

log = logging.getLogger(__name__)

_SCHEMA = 1


class RunFolder:
    """One run's folder.

    Args:
        output: the model file that the run writes at its end; the folder lies beside it.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_name(f"{output.name}.run")
        self.settings, self.metrics, self.results = (self.path / name for name in ("settings.json", "metrics.jsonl", "results.json"))
        self.last, self.best = self.path / "last", self.path / "best"
        self._board: Any = None
        self._lock = FileLock(self.path / ".lock")

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.settings.exists()

    def open(self, identity: Mapping[str, Any], *, restart: bool) -> Checkpoint | None:
        """Begin the run, or take it up again.

        Args:
            identity: everything needed to repeat the run. Under ``same`` it holds what has to be the same for the run to go on.
            restart: begin anew; what an earlier run has reached is removed.

        Returns:
            The state to go on from; ``None`` at the beginning.

        Raises:
            InputError: where the folder holds something else, a run that is going on, or one that was begun with other settings.
        """
        check_target(self.output)
        if self.path.exists() and not self.exists() and any(not name.name.startswith(".") for name in _inside(self.path)):
            raise InputError(
                "The run's folder exists, and no run has written it.",
                where=str(self.path),
                not_done="Nothing was trained.",
                to_do="Move it away, or write elsewhere with -o.",
            )
        self.path.mkdir(exist_ok=True)
        self._hold()
        if self.exists() and not restart:
            self._require_same(identity)
            found = read_checkpoint(self.last)
        else:
            found = None
            self._clear()
            text = json.dumps({"schema": _SCHEMA, **identity}, indent=2)
            write_whole(self.settings, lambda temporary: temporary.write_text(text + "\n"))
        self._cut_metrics(0 if found is None else int(found.facts["metrics_bytes"]))
        return found

    def _hold(self) -> None:
        """Keep other runs out: two in one folder would write over each other's state."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout as held:
            raise InputError(
                "Another run is going on in this folder.",
                where=str(self.path),
                not_done="Nothing was trained, and nothing was changed.",
                to_do="Wait for it; or stop it with Ctrl-C, which saves its state, and give the command again; or write elsewhere with -o.",
            ) from held
        except (OSError, NotImplementedError) as error:
            # Not every network's file system has locks. A disk that takes nothing is told by what is written next.
            log.warning("%s cannot be locked (%s): a second run in it would not be noticed.", self.path, error)

    def _clear(self) -> None:
        self.results.unlink(missing_ok=True)
        for folder in (self.last, self.best):
            remove_checkpoint(folder)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)

    def _require_same(self, identity: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.settings.read_text())
            then = {**before["settings"], **before["same"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"What the run was begun with cannot be read: {str(error).splitlines()[0]}",
                where=str(self.settings),
                not_done="Nothing was trained.",
                to_do="Pass --restart to begin it anew.",
            ) from error
        now = {**identity["settings"], **identity["same"]}
        differing = [name for name in {**then, **now} if then.get(name) != now.get(name) and name not in WITHOUT_EFFECT]
        if differing:
            told = "; ".join(f"{_called(name, identity)} was {_shown(then.get(name))}, now {_shown(now.get(name))}" for name in differing)
            raise InputError(
                f"The run in this folder was begun otherwise: {told}.",
                where=str(self.path),
                not_done="Nothing was trained, and nothing was changed.",
                to_do="Give the same command to go on; pass --restart to begin anew; or write elsewhere with -o.",
            )

    def _cut_metrics(self, size: int) -> None:
        """Remove the lines that were written after the checkpoint: their epochs are run again."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics.stat().st_size))

    def metrics_bytes(self) -> int:
        """How long the file of metrics is."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Write one epoch's metrics.

        Raises:
            Refusal: where the disk is full or fails.
        """
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise disk_failed(self.metrics, error) from error
        board = self._tensorboard(int(line["epoch"]))
        if board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name not in ("epoch", "step"):
                    board.add_scalar(name, value, line["epoch"])
            board.flush()

    def _tensorboard(self, epoch: int) -> Any:
        if self._board is None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._board = False
            else:
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=epoch)
        return self._board or None

    def write_last(self, checkpoint: Checkpoint) -> None:
        """Replace the state to go on from.

        Raises:
            Refusal: where the disk is full or fails.
        """
        write_checkpoint(self.last, checkpoint)

    def write_best(self, network: nn.Module, line: Mapping[str, Any]) -> None:
        """Replace the best epoch's model file.

        Raises:
            Refusal: where the disk is full or fails.
        """

        def fill(part: Path) -> None:
            save(network, part / "model.safetensors")
            (part / "metrics.json").write_text(json.dumps(line) + "\n")

        replace_folder(self.best, fill)

    def read_best(self) -> dict[str, Tensor]:
        """The best epoch's weights."""
        recovered(self.best)
        return load_file(self.best / "model.safetensors")

    def finish(self, network: nn.Module, results: Mapping[str, Any]) -> bool:
        """Write the run's model file, unless that was done before and the file is still there; whether it was written now.

        Raises:
            Refusal: where the disk is full or fails.
        """
        if self.results.exists() and self.output.exists():
            return False
        save(network, self.output)
        write_whole(self.results, lambda temporary: temporary.write_text(json.dumps(dict(results), indent=2) + "\n"))
        return True

    def close(self) -> None:
        """Let go of what is open, and of the folder."""
        if self._board:
            self._board.close()
        self._board = None
        self._lock.release()


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else [folder]


def _called(name: str, identity: Mapping[str, Any]) -> str:
    return flag(name) if name in identity["settings"] else name.replace("_", " ")


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)
