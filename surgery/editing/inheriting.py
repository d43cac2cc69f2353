"""Tensors that start with values which the network had before it was edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from chansurg.surgery.editing.children import refuse
from chansurg.surgery.edits import Inherit


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

    Raises:
        Refusal: where a tensor is not there, is named twice, or has another shape than what it would start as.
    """
    state = network.state_dict(keep_vars=True) if edits else {}
    given: set[str] = set()
    for edit in edits:
        target = state.get(edit.tensor)
        if not isinstance(target, Tensor):
            raise refuse(f"The edited network has no tensor {edit.tensor!r}.", edit.tensor)
        if edit.tensor in given:
            raise refuse(f"{edit.tensor} would start as two tensors at once.", edit.tensor)
        given.add(edit.tensor)
        source = remembered[edit.source]
        if (reason := _reason_against(edit, source, target)) is not None:
            raise refuse(f"{edit.tensor} cannot start as {edit.source}: {reason}.", edit.tensor)
        if source.is_meta:
            continue
        for dimension, indices in enumerate(edit.slices):
            if indices is not None:
                source = source.index_select(dimension, torch.tensor(indices, dtype=torch.long, device=source.device))
        with torch.no_grad():
            target.copy_(source)


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
    if shape != list(target.shape):
        return f"it would be {shape}, and {list(target.shape)} is wanted"
    return None
