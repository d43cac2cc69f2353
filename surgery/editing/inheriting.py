"""Tensors that start with values which the network had before it was edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from chansurg.surgery.editing.children import refuse
from chansurg.surgery.edits import Inherit
from chansurg.surgery.memory_format import is_channels_last, to_channels_last


def remember(network: nn.Module, edits: Sequence[Inherit], *, numbers: bool) -> dict[str, Tensor]:
    """What the edits' sources hold now, by name; without ``numbers`` only of which shape they are, on the meta device.

    Raises:
        Refusal: where the network has no such tensor.
    """
    state = network.state_dict(keep_vars=True) if edits else {}
    remembered: dict[str, Tensor] = {}
    for edit in edits:
        source = state.get(edit.source)
        if not isinstance(source, Tensor):
            raise refuse(f"{edit.tensor} cannot start as {edit.source!r}: {type(network).__name__} has no such tensor.", edit.tensor)
        if edit.source not in remembered:
            remembered[edit.source] = source.detach().clone() if numbers else source.detach().to("meta")
    return remembered


def hand_down(network: nn.Module, edits: Sequence[Inherit], remembered: Mapping[str, Tensor]) -> None:
    """Give the edits' tensors what their sources held; of sources that are remembered by shape alone, see that they fit.

    A tensor keeps its dtype and device, and lies in memory as its source does: in ``channels_last`` or not.

    Raises:
        Refusal: where a tensor is not there, would start as two at once or as one in part, or has another shape than what it would start
            as.
    """
    state = network.state_dict(keep_vars=True) if edits else {}
    by_tensor: dict[str, list[Inherit]] = {}
    for edit in edits:
        by_tensor.setdefault(edit.tensor, []).append(edit)
    for name, parts in by_tensor.items():
        target = state.get(name)
        if not isinstance(target, Tensor):
            raise refuse(f"The edited network has no tensor {name!r}.", name)
        for edit in parts:
            if (reason := _reason_against(edit, remembered[edit.source], target)) is not None:
                raise refuse(f"{name} cannot start as {edit.source}: {reason}.", name)
        if (reason := _reason_against_parts(parts, target)) is not None:
            raise refuse(f"{name} would start as {reason}.", name)
        for edit in parts:
            _copy(edit, remembered[edit.source], target)


@torch.no_grad()
def _copy(edit: Inherit, source: Tensor, target: Tensor) -> None:
    if source.is_meta:
        return
    if is_channels_last(source):
        target.data = to_channels_last(target.data)
    for dimension, indices in enumerate(edit.slices):
        if indices is not None:
            source = source.index_select(dimension, torch.tensor(indices, dtype=torch.long, device=source.device))
    if edit.rows is None:
        target.copy_(source)
    else:
        index = torch.tensor(edit.rows, dtype=torch.long, device=target.device)
        target.index_copy_(0, index, source.to(target.device, target.dtype))


def _reason_against_parts(parts: Sequence[Inherit], target: Tensor) -> str | None:
    """Why the edits of one tensor do not make it up, each row once and from one source, or ``None``."""
    rows = [row for edit in parts for row in _rows(edit, target)]
    if len(set(rows)) != len(rows) or len({edit.source for edit in parts}) > 1:
        return "two tensors at once"
    height = target.shape[0] if target.ndim else 1
    return f"{parts[0].source} in {len(rows)} of its {height} rows only" if len(rows) != height else None


def _rows(edit: Inherit, target: Tensor) -> Sequence[int]:
    return edit.rows if edit.rows is not None else range(target.shape[0] if target.ndim else 1)


def _reason_against(edit: Inherit, source: Tensor, target: Tensor) -> str | None:
    if edit.slices and len(edit.slices) != source.ndim:
        return f"it has {source.ndim} dimensions, and slices were given for {len(edit.slices)}"
    shape = list(source.shape)
    for dimension, indices in enumerate(edit.slices):
        if indices is None:
            continue
        if any(not 0 <= index < source.shape[dimension] for index in indices):
            return f"its dimension {dimension} has {source.shape[dimension]} entries, and others were named"
        shape[dimension] = len(indices)
    wanted = list(target.shape)
    if edit.rows is not None:
        if not wanted or len(set(edit.rows)) != len(edit.rows) or any(not 0 <= row < wanted[0] for row in edit.rows):
            return f"its rows are not among those of a tensor {wanted}, once each"
        wanted[0] = len(edit.rows)
    if shape != wanted:
        return f"it would be {shape}, and {wanted} is wanted"
    return None
