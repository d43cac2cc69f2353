"""What the blocks of a network put out, taken while it runs, and which blocks of two networks belong together.

Surgery keeps the paths of modules, so a block of a converted network and the block that it was have one name. Blocks are found in the
teacher (residual blocks in its graph; where it has none, its larger modules), and are matched where both networks put out one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from chansurg.surgery.errors import InputError
from chansurg.surgery.files.provenance import record_of
from chansurg.surgery.modes import eval_mode
from chansurg.surgery.survey import survey
from chansurg.surgery.survey.landmarks import larger_modules, residual_blocks


class _Tap:
    """A forward hook that keeps what its module puts out. A copy of the network (an average of its weights, say) gets one that is shut."""

    def __init__(self) -> None:
        self.open = True
        self.output: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.open:
            # Where no gradient is wanted, what runs behind it may write into it.
            self.output = output if output.requires_grad else output.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tap:
        shut = _Tap()
        shut.open = False
        return shut


class BlockOutputs:
    """Keeps what some of a network's modules put out in its last forward.

    The hooks are on the modules themselves: they fire inside DistributedDataParallel too, and inside ``torch.compile`` where they were
    there before the network first ran.

    Args:
        network: the network inside any wrapper.
        paths: the modules.
    """

    def __init__(self, network: nn.Module, paths: Iterable[str]) -> None:
        self._taps = {path: _Tap() for path in paths}
        self._handles: list[RemovableHandle] = [network.get_submodule(path).register_forward_hook(tap) for path, tap in self._taps.items()]

    def take(self) -> dict[str, Tensor]:
        """The outputs by path; they are not kept any longer.

        Raises:
            InputError: where a module did not run.
        """
        outputs = {}
        for path, tap in self._taps.items():
            if tap.output is None:
                raise InputError(
                    f"The block {path!r} put nothing out in the last forward.",
                    where=path,
                    not_done="The loss was not computed.",
                    to_do="Compile or wrap the network after the objective was made, or distil from logits alone.",
                )
            outputs[path], tap.output = tap.output, None
        return outputs

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def matched_blocks(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Paths of the teacher's blocks that the student has too, with outputs of one shape, in order of execution.

    Args:
        student: the network inside any wrapper; runs once, in eval mode.
        teacher: likewise.

    Raises:
        InputError: where there is none; says of each why not.
    """
    candidates = _blocks(teacher)
    ours, theirs = _shapes(student, candidates), _shapes(teacher, candidates)
    reasons: dict[str, str] = {}
    for path in candidates:
        if path not in theirs:
            reasons[path] = "it puts out no single tensor in the teacher, or runs more than once"
        elif path not in ours:
            reasons[path] = "the student has no such block, or it puts out no single tensor"
        elif ours[path] != theirs[path]:
            reasons[path] = f"it puts out {_size(ours[path])} in the student and {_size(theirs[path])} in the teacher"
    matched = [path for path in theirs if path not in reasons]
    if not matched:
        told = "; ".join(f"{path}: {reason}" for path, reason in list(reasons.items())[:8])
        raise InputError(
            f"No block of the teacher's can be matched with one of the student's. {told or 'The teacher has no blocks'}.",
            where="option --distill-blocks",
            not_done="Nothing was trained.",
            to_do="Take the network that the student was converted from as its teacher, or distil from logits alone (--distill-blocks 0).",
        )
    return matched


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _blocks(network: nn.Module) -> list[str]:
    """Paths of residual blocks; where there are none, of the larger modules."""
    try:
        blocks = residual_blocks(survey(network, record_of(network).preprocessing.input_size))
    except InputError:
        blocks = []
    return blocks or larger_modules(network)


@torch.no_grad()
def _shapes(network: nn.Module, paths: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Shapes, without the batch, of what the modules put out, in order of execution; only of those that run once and give one tensor."""
    shapes: dict[str, list[tuple[int, ...] | None]] = {}
    modules = dict(network.named_modules())

    def note(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shape = tuple(output.shape[1:]) if isinstance(output, Tensor) and output.ndim > 2 else None
            shapes.setdefault(path, []).append(shape)

        return hook

    handles = [modules[path].register_forward_hook(note(path)) for path in paths if path in modules]
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        with eval_mode(network):
            network(torch.zeros(1, *record_of(network).preprocessing.input_size, device=first.device, dtype=first.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return {path: seen[0] for path, seen in shapes.items() if len(seen) == 1 and seen[0] is not None}
