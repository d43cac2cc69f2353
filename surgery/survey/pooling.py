"""What works on globally pooled vectors: the gates of squeeze-and-excitation, heads.

Told by a global pooling in the chain that leads there, not by maps of one pixel: at a small input size ordinary maps have one pixel too.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from chansurg.surgery.survey.kinds import conv_of, function_name, is_pooling, module_of, shape_of, tensor_inputs

_REDUCTIONS = frozenset(("mean", "amax", "amin", "sum", "logsumexp"))
_WINDOWS = frozenset(("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"))
_SPREADING = frozenset(("interpolate", "upsample", "expand", "expand_as", "repeat", "repeat_interleave"))


def mark_pooled(nodes: Iterable[fx.Node]) -> None:
    """Write ``meta["pooled"]`` on every node all of whose inputs come out of a global pooling, until they are spread over a map again."""
    for node in nodes:
        sources = tensor_inputs(node)
        spread = function_name(node) in _SPREADING or isinstance(module_of(node), nn.Upsample)
        from_pooled = bool(sources) and not spread and all(source.meta["pooled"] for source in sources)
        node.meta["pooled"] = from_pooled or _pools_globally(node, sources)


def _pools_globally(node: fx.Node, sources: list[fx.Node]) -> bool:
    module, name = module_of(node), function_name(node)
    if isinstance(module, (nn.modules.pooling._AdaptiveAvgPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd)):
        return _is_one(module.output_size)
    if name.startswith("adaptive_"):
        return _is_one(node.kwargs.get("output_size", node.args[1] if len(node.args) > 1 else None))
    if name in _WINDOWS:  # a window as large as the map
        window = node.kwargs.get("kernel_size", node.args[1] if len(node.args) > 1 else None)
        return isinstance(window, fx.Node) or (isinstance(window, (tuple, list)) and any(isinstance(side, fx.Node) for side in window))
    before = shape_of(sources[0]) if sources else None
    if before is None:
        return False
    if name in _REDUCTIONS:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        reduced = {d % len(before) for d in (dims if isinstance(dims, (tuple, list)) else (dims,)) if isinstance(d, int)}
        return len(before) > 2 and 0 not in reduced and len(reduced) == len(before) - 2
    # Pooling with weights, as by attention: a map goes in and a vector comes out, though no window was moved over it.
    after = shape_of(node)
    windowed = conv_of(node) is not None or is_pooling(node) or name == "getitem"
    return not windowed and after is not None and len(after) == len(before) == 4 and _is_one(after[2:]) and not _is_one(before[2:])


def _is_one(size: object) -> bool:
    return size == 1 or (isinstance(size, (tuple, list)) and len(size) > 0 and all(side == 1 for side in size))
