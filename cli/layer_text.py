"""A layer in a few words, from the attributes that torch's layers have; no torch is imported here."""

from __future__ import annotations

from typing import Any

from chansurg.surgery.edits import Scale


def layer_text(module: Any) -> str:
    """``Conv2d 64 -> 256, 1x1``; anything unknown by its class name alone."""
    name = type(module).__name__
    if hasattr(module, "kernel_size") and hasattr(module, "in_channels"):
        return _convolution(name, module)
    for first, second in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, first) and hasattr(module, second):
            return f"{name} {getattr(module, first)} -> {getattr(module, second)}"
    for size in ("num_features", "num_channels", "normalized_shape"):
        if hasattr(module, size):
            value = getattr(module, size)
            return f"{name} {'x'.join(map(str, value)) if isinstance(value, tuple) else value}"
    return name


def scale_text(edit: Scale) -> str:
    """What a layer is multiplied by: ``times 2``, ``inputs times 2``, ``3 inputs times 0.25 to 1.5``."""
    factors = edit.factors if isinstance(edit.factors, tuple) else (edit.factors,)
    least, most = f"{min(factors):.3g}", f"{max(factors):.3g}"
    what = {"in": "inputs", "out": "outputs"}[edit.side]
    if edit.channels is not None:
        what = f"{len(edit.channels)} {what if len(edit.channels) != 1 else what.removesuffix('s')}"
    elif edit.side == "out":
        what = ""  # all that it puts out: the layer as a whole
    return f"{what} times {least if least == most else f'{least} to {most}'}".strip()


def _convolution(name: str, module: Any) -> str:
    kernel = "x".join(map(str, module.kernel_size))
    parts = [f"{name} {module.in_channels} -> {module.out_channels}", kernel]
    if any(step != 1 for step in module.stride):
        parts.append(f"stride {module.stride[0]}")
    if module.groups != 1:
        parts.append(f"{module.groups} groups")
    return ", ".join(parts)
