"""Routing a branch in a traced forward: it gets a selection of its input, and a fusion takes the place of the addition that ends it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from chansurg.surgery.edits import Address
from chansurg.surgery.forwards.rewriting import first_input

_ADDITIONS = frozenset(("operator.add", "operator.iadd", "torch.add", ".add", ".add_"))


def reason_against_routing(into: Sequence[fx.Node], closes: fx.Node, passing: int | None) -> str | None:
    """Why a branch cannot be routed, or ``None``; nothing is changed. Arguments as for :func:`route`, ``into`` of one graph."""
    if any(not node.all_input_nodes for node in into) or len({first_input(node) for node in into}) != 1:
        return "the branch's first calls do not begin with one and the same tensor"
    inside: set[fx.Node] = set()
    for node in closes.graph.nodes:
        if node in into or not inside.isdisjoint(node.all_input_nodes):
            inside.add(node)
    if passing is None:
        return None if closes in inside else "the call that is to end the branch is not reached by it"
    address = closes.meta.get("address")
    if not isinstance(address, Address) or address.operation not in _ADDITIONS or closes in into:
        return "the call that is to end the branch is no addition"
    if len(closes.args) != 2 or closes.kwargs or not all(isinstance(operand, fx.Node) for operand in closes.args):
        return "the addition that ends the branch is not one of two tensors"
    if closes.args[passing] in inside:
        return f"operand {passing} of the addition comes out of the branch and does not pass it by"
    if closes.args[1 - passing] not in inside:
        return f"operand {1 - passing} of the addition does not come out of the branch"
    return None


def route(graph: fx.Graph, into: Sequence[fx.Node], closes: fx.Node, passing: int | None, name: str, fusion_name: str) -> None:
    """Let child ``name`` select what the calls ``into`` compute on, and child ``fusion_name`` fuse what comes out.

    Args:
        graph: of the forward that makes all these calls.
        into: the branch's first calls; their first inputs are one tensor.
        closes: the call that ends the branch.
        passing: which operand of the addition ``closes`` passes the branch by: the fusion takes its place. ``None``: ``closes`` is any
            call; it stays, and its readers get the fusion of the branch's input with its output.
        name: child that gives the selection and a note of it.
        fusion_name: child that is called on what passes by, what the branch gives, and the note.
    """
    x = first_input(into[0])
    with graph.inserting_before(min(into)):
        both = graph.call_module(name, (x,))
        selected, note = (graph.call_function(operator.getitem, (both, index)) for index in (0, 1))
    for node in into:
        node.replace_input_with(x, selected)
    if passing is None:
        with graph.inserting_after(closes):
            fused = graph.call_module(fusion_name, (x, closes, note))
        closes.replace_all_uses_with(fused, delete_user_cb=lambda user: user is not fused)
        return
    with graph.inserting_before(closes):
        fused = graph.call_module(fusion_name, (closes.args[passing], closes.args[1 - passing], note))
    closes.replace_all_uses_with(fused)
    graph.erase_node(closes)
