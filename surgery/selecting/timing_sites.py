"""Which sites a recipe makes quicker on this machine: each is timed in its real shape, the original's form and the recipe's in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from chansurg.surgery.delivery.benching import bench
from chansurg.surgery.delivery.benchmark import LayerRow
from chansurg.surgery.selecting.timed import TimedSite, Timing, Where

SECONDS = 12.0
"""How long the whole network is timed; each module that differs takes a quarter of that at most."""


def time_sites(
    model: nn.Module,
    converted: nn.Module,
    paths: Sequence[str],
    where: Where,
    *,
    input_size: tuple[int, ...],
    progress: Callable[[int, int], None] | None = None,
) -> Timing:
    """Time the modules in which two networks differ, and say of each site whether it gains.

    Args:
        model: the network.
        converted: the same with every site converted.
        paths: of the sites.
        where: runtime and batch size.
        input_size: ``(C, H, W)``.
        progress: called once, before the timing begins, with none of it done.
    """
    if progress is not None:
        progress(0, 1)
    found = bench(
        converted,
        model,
        runtimes=[where.runtime],
        batch_sizes=[where.batch_size],
        input_sizes=[input_size],
        memory=False,
        per_layer=True,
        seconds=SECONDS,
    )
    whole = found.rows[0].reason
    sites = tuple(_site(path, [row for row in found.layers if _covers(row.path, path)], whole) for path in paths)
    return Timing(where, found.threads, dict(found.machine), sites)


def _covers(module: str, site: str) -> bool:
    """Whether a module is the site's, around it or in it."""
    return f"{site}.".startswith(f"{module}.") or f"{module}.".startswith(f"{site}.")


def _site(path: str, rows: Sequence[LayerRow], whole: str | None) -> TimedSite:
    failed = whole or next((row.row.reason for row in rows if row.row.reason is not None), None)
    if failed is None and not rows:
        failed = "no module around it takes and gives the same shapes before and after"
    modules = ", ".join(row.path for row in rows)
    if failed is not None:
        return TimedSite(path, modules, None, None, False, f"it could not be timed: {failed}")
    before = after = least = 0.0
    for row in rows:
        assert row.row.model is not None
        assert row.row.against is not None
        assert row.row.ratio is not None
        before += row.row.against.time.median
        after += row.row.model.time.median
        least += row.row.model.time.median * row.row.ratio.low
    faster = least > after
    reason = "it is faster here" if faster else "it is slower here" if before < after else "it is no faster here, for all that can be told"
    return TimedSite(path, modules, 1e3 * before, 1e3 * after, faster, reason)
