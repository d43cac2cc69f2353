"""Building a network on the CPU without drawing its random numbers, which loading would throw away at once.

Needed where a network cannot be built on the meta device, or would keep tensors there that no file contains. Deterministic
initialisers (constants, tables of positions) still run: those are the very tensors that are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# A function that is let through runs with this mode off, so those of torch.nn.init that arrive whole are stopped by their own names.
_RANDOM = frozenset(
    [
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_", "erfinv_"),
        *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_"),
    ]
)


class _DrawNothing(TorchFunctionMode):
    """Turns random in-place initialisation into nothing at all."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        if getattr(func, "__name__", "") in _RANDOM:
            tensor = args[0] if args else keywords.get("tensor")
            if isinstance(tensor, Tensor):
                return tensor
        return func(*args, **keywords)


@contextmanager
def random_initialisers_skipped() -> Iterator[None]:
    """Within this, parameters keep whatever their memory held; the global random state is left as it was."""
    orthogonal = torch.nn.init.orthogonal_

    def leave(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    # An orthogonal matrix is factorised from drawn numbers: without those it would be slow work on garbage.
    torch.nn.init.orthogonal_ = leave
    try:
        with torch.random.fork_rng(devices=[]), _DrawNothing():
            yield
    finally:
        torch.nn.init.orthogonal_ = orthogonal
