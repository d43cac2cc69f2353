"""Building a network on the CPU without drawing its random numbers, which loading would throw away at once.

Needed where a network cannot be built on the meta device, or would keep tensors there that no file contains. Deterministic
initialisers (constants, tables of positions) still run: those are the very tensors that are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# A function that is let through runs with this mode off, so those of torch.nn.init that arrive whole are stopped by their own names.
_RANDOM = frozenset(
    [
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_", "geometric_", "erfinv_"),
        *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_"),
    ]
)


_PATIENCE = 8


class _DrawNothing(TorchFunctionMode):
    """Turns the random in-place initialisation of parameters into nothing at all.

    Whatever is no parameter is drawn as ever, and so is a parameter that is drawn again and again: some initialisers draw until they
    like what they see (rejection sampling), and would never like memory that nothing is written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[int, tuple[nn.Parameter, int]] = {}

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
            if isinstance(tensor, nn.Parameter):
                # The parameter is kept with its count, so that its id is not given to another one.
                count = self.draws.get(id(tensor), (tensor, 0))[1] + 1
                self.draws[id(tensor)] = (tensor, count)
                if count <= _PATIENCE:
                    return tensor
        return func(*args, **keywords)


def _left_as_it_is(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


@contextmanager
def random_initialisers_skipped() -> Iterator[None]:
    """Within this, parameters keep whatever their memory held; the global random state is left as it was."""
    # These do more than draw: an orthogonal matrix is factorised, a truncated normal distribution is sampled by rejection.
    skipped = [name for name in ("orthogonal_", "_no_grad_trunc_normal_") if hasattr(nn.init, name)]
    originals = {name: getattr(nn.init, name) for name in skipped}
    try:
        for name in skipped:
            setattr(nn.init, name, _left_as_it_is)
        with torch.random.fork_rng(devices=[]), _DrawNothing():
            yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)
