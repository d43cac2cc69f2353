"""SlimConv written out in float64, straight from Equations 1 and 2 and Section III-A of the paper. Slow on purpose; shares nothing with
the layer but the names of its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]


def batch_norm(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        scale = tensors[f"{name}.weight"][c] / np.sqrt(tensors[f"{name}.running_var"][c] + 1e-5)
        y[:, c] = (x[:, c] - tensors[f"{name}.running_mean"][c]) * scale + tensors[f"{name}.bias"][c]
    return y


def convolution(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    batch, _, height, width = x.shape
    outputs, per_group, kernel_h, kernel_w = weight.shape
    padded = np.zeros((batch, x.shape[1], height + 2 * padding[0], width + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    rows = (padded.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    columns = (padded.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = np.zeros((batch, outputs, rows, columns))
    for o in range(outputs):
        group = o // (outputs // groups)
        for i, u, v in itertools.product(range(per_group), range(kernel_h), range(kernel_w)):
            top, left = u * dilation[0], v * dilation[1]
            seen = padded[:, group * per_group + i, top : top + rows * stride[0] : stride[0], left : left + columns * stride[1] : stride[1]]
            y[:, o] += weight[o, i, u, v] * seen[:, :rows, :columns]
        if bias is not None:
            y[:, o] += bias[o]
    return y


def fold(x: np.ndarray, w: np.ndarray, folds: int) -> np.ndarray:
    """X_w = w * X, split in ``folds`` parts, which are summed (Equation 2)."""
    weighted = np.stack([[w[b, c] * x[b, c] for c in range(x.shape[1])] for b in range(x.shape[0])])
    size = x.shape[1] // folds
    return sum(weighted[:, r * size : (r + 1) * size] for r in range(folds))


def shuffled(w: np.ndarray, folds: int) -> np.ndarray:
    size = w.shape[1] // folds
    return np.stack([w[:, (i % folds) * size + i // folds] for i in range(w.shape[1])], axis=1)


def slim_convolution(x: np.ndarray, tensors: Tensors, folds: int, weights: str, paths: int, arguments: Mapping[str, object]) -> np.ndarray:
    """``x`` [B, C, H, W] float64 -> [B, 3 C_out / (2 folds), H', W'] (4 C_out / (2 folds) with three paths).

    ``arguments`` are stride, padding and dilation, and ``top_groups`` and ``other_groups``.
    """
    where = [arguments[name] for name in ("stride", "padding", "dilation")]
    z = np.stack([[x[b, c].sum() / x[b, c].size for c in range(x.shape[1])] for b in range(x.shape[0])])
    hidden = np.einsum("bc,hc->bh", z, tensors["squeeze.weight"][:, :, 0, 0])
    hidden = np.maximum(batch_norm(hidden, tensors, "norm"), 0)
    w = 1 / (1 + np.exp(-(np.einsum("bh,ch->bc", hidden, tensors["excite.weight"][:, :, 0, 0]) + tensors["excite.bias"])))
    flipped = w[:, ::-1]
    order = {"both": (w, flipped), "plain": (w, w), "flipped": (flipped, flipped), "shuffled": (w, shuffled(w, folds))}[weights]

    def spatial(name: str, folded: np.ndarray, groups: object) -> np.ndarray:
        return convolution(folded, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), *where, groups)

    parts = [spatial("top", fold(x, order[0], folds), arguments["top_groups"])]
    for path, of_path in (("bottom", order[1]), ("third", shuffled(w, folds)))[: paths - 1]:
        reduced = np.einsum("bchw,rc->brhw", fold(x, of_path, folds), tensors[f"{path}.reduce.weight"][:, :, 0, 0])
        reduced = np.maximum(batch_norm(reduced, tensors, f"{path}.norm"), 0)
        parts.append(spatial(f"{path}.conv", reduced, arguments["other_groups"]))
    return np.concatenate(parts, axis=1)
