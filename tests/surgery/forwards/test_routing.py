"""Which branches of a forward can be routed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from chansurg.surgery.forwards.rewriting import trace_forward
from chansurg.surgery.forwards.routing import reason_against_routing


class Additions(nn.Module):
    """Sums of many kinds: ``[B, C] -> [B, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(x)
        a = torch.add(y, x)
        b = torch.add(y, x, alpha=2)
        c = y.add(x)
        d = y + 3
        e = y + y
        f = x + self.shift
        g = y + self.shift
        h = y * x
        return a * b * c * d * e * f * g * h


GRAPH = trace_forward(Additions(), "", {})


@pytest.mark.parametrize(
    ("closes", "passing", "reason"),
    [
        ("torch.add", 1, None),
        ("torch.add", 0, "operand 0 of the addition comes out of the branch and does not pass it by"),
        ("torch.add#1", 1, "not one of two tensors"),
        (".add", 1, None),
        ("operator.add", 1, "not one of two tensors"),
        ("operator.add#1", 1, "operand 1 of the addition comes out of the branch"),
        ("operator.add#2", 0, "operand 1 of the addition does not come out of the branch"),
        ("operator.add#3", 1, None),
        ("operator.mul", 1, "is no addition"),
        ("operator.mul", None, None),
        ("operator.add#2", None, "is not reached by it"),
        ("f", None, None),
        ("f", 0, "is no addition"),
    ],
)
def test_reasons_against_routing(closes: str, passing: int | None, reason: str | None) -> None:
    def at(path: str) -> fx.Node:
        return next(node for node in GRAPH.nodes if "address" in node.meta and node.meta["address"].path.removeprefix(":") == path)

    found = reason_against_routing([at("f")], at(closes), passing)
    assert (found is None) if reason is None else (found is not None and reason in found)
