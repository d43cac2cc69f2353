"""The smallest module whose own forward sees both what goes into one layer and what comes out of another.

An edit that joins the two rewrites that forward. Where the layers are called deeper down, the forward sees the calls of the modules that
hold them, and these stand for the layers: a call whose first input is the layer's, a call whose result is the layer's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from chansurg.surgery.edits import Address
from chansurg.surgery.survey.kinds import tensor_inputs
from chansurg.surgery.survey.regions import Region


@dataclass(frozen=True)
class Meeting:
    """Two calls of one forward: ``reads`` is given what ``first`` is given, ``after`` puts out what ``last`` puts out."""

    reads: Address
    after: Address


def meeting(region: Region, first: fx.Node, last: fx.Node) -> Meeting | None:
    """Where the input of ``first`` and the output of ``last`` meet, in the smallest such module; ``None`` where in none.

    Args:
        region: where the nodes are.
        first: a call with an input.
        last: a call that runs later, or the same one.
    """
    outer = [a for a, b in zip(first.meta["owners"], last.meta["owners"], strict=False) if a == b]
    for owner in reversed(outer):
        reads, after = seen_from(region, owner, first), seen_from(region, owner, last)
        if reads is None or after is None:
            continue
        if reads[1] is tensor_inputs(first)[0] and after[2] is last:
            return Meeting(reads[0], after[0])
    return None


def seen_from(region: Region, owner: str, node: fx.Node) -> tuple[Address, fx.Node | None, fx.Node | None] | None:
    """The call that ``owner``'s forward makes to get ``node`` run: its address, the node of its first input, the node of its result.

    ``None`` where the call cannot be named; ``owner`` is one of the modules whose forwards ``node`` is made in.
    """
    owners: tuple[str, ...] = node.meta["owners"]
    if owners[-1] == owner:
        address = node.meta.get("address")
        inputs = tensor_inputs(node)
        return (address, inputs[0] if inputs else None, node) if isinstance(address, Address) else None
    path = owners[owners.index(owner) + 1]
    calls = region.calls[path]
    if len(calls) != 1 or calls[0].address is None or (owner and not path.startswith(f"{owner}.")):
        return None
    return calls[0].address, calls[0].source, calls[0].result
