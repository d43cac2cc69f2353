"""The one place where networks are changed: a list of edits goes in with a network, the changed network comes out.

Converting and replaying share :func:`perform`. Converting works on the real network and initialises new layers; replaying works on a
skeleton whose tensors come from a file, and checks that the code underneath is still the one that was edited.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

from torch import fx, nn

from chansurg.surgery.editing.children import add_child, drop_uncalled, module_at, refuse, repeat_child, swap_child
from chansurg.surgery.editing.inheriting import hand_down, remember
from chansurg.surgery.editing.narrowing import narrow, narrow_parameter
from chansurg.surgery.editing.scaling import scale
from chansurg.surgery.edits import Address, Attach, Bypass, Edit, Inherit, Insert, Narrow, Repeat, Replace, Route, Scale, Swap
from chansurg.surgery.forwards.rewriting import (
    attach_after,
    bypass,
    find_call,
    give_back_original,
    graph_hash,
    insert_before,
    install,
    replace_call,
    trace_forward,
)
from chansurg.surgery.forwards.routing import reason_against_routing, route
from chansurg.surgery.forwards.tracing import TraceFailure


class ChangedUnderneath(Exception):
    """A library's code is not what it was when the edits were made; the message names the module."""


def perform(
    network: nn.Module,
    edits: Sequence[Edit],
    signatures: Mapping[str, Mapping[str, Any]],
    *,
    seed: int | None,
    expected: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Carry out ``edits`` on ``network``, in place.

    Args:
        network: on any device. Where it fails the network may be half edited, so callers pass a copy or let go of it.
        edits: in order; repeats are carried out ahead of all others, and inheritances behind them.
        signatures: for each module whose code the edits rely on, its non-tensor arguments.
        seed: initialises the new layers, and tensors inherit; ``None`` leaves them empty, for tensors that come from a file.
        expected: hashes of those modules' graphs, to check before any call or layer is changed.

    Returns:
        The hash of each of those modules' graphs before all edits but repeats, for the journal; ``""`` where a forward cannot be traced by
        itself.

    Raises:
        ChangedUnderneath: where a hash differs from the expected one.
        Refusal: where an edit cannot be made.
    """
    inheritances = [edit for edit in edits if isinstance(edit, Inherit)]
    remembered = remember(network, inheritances, numbers=seed is not None)
    for edit in edits:
        if isinstance(edit, Repeat):
            repeat_child(network, edit)
    graphs: dict[str, fx.Graph] = {}
    hashes: dict[str, str] = {}
    for owner, concrete in signatures.items():
        try:
            graphs[owner] = trace_forward(module_at(network, owner), owner, concrete)
            hashes[owner] = graph_hash(graphs[owner])
        except TraceFailure:
            hashes[owner] = ""
        if expected is not None and hashes[owner] != expected.get(owner, hashes[owner]):
            raise ChangedUnderneath(owner)
    rewritten: dict[str, None] = {}
    for edit in edits:
        match edit:
            case Swap():
                swap_child(network, edit, seed)
            case Narrow():
                _narrow(network, edit)
            case Scale():
                scale(module_at(network, edit.path), edit.path, edit.side, edit.factors, edit.channels)
            case Insert():
                graph, node = _locate(graphs, edit.before)
                add_child(network, edit.path, edit.layer, graph, node, seed, behind=False)
                insert_before(graph, node, edit.name)
                rewritten[edit.before.owner] = None
            case Attach():
                graph, node = _locate(graphs, edit.after)
                _, read = _locate(graphs, edit.reads)
                if node < read:
                    raise refuse(f"{edit.path} would read what is not there yet: {edit.reads.path} runs later.", edit.path)
                add_child(network, edit.path, edit.layer, graph, node, seed, behind=True)
                attach_after(graph, node, read, edit.name)
                rewritten[edit.after.owner] = None
            case Replace():
                graph, node = _locate(graphs, edit.at)
                add_child(network, edit.path, edit.layer, graph, node, seed, behind=True)
                replace_call(graph, node, edit.name)
                drop_uncalled(network, edit.at, graph)
                rewritten[edit.at.owner] = None
            case Bypass():
                graph, node = _locate(graphs, edit.at)
                bypass(graph, node)
                drop_uncalled(network, edit.at, graph)
                rewritten[edit.at.owner] = None
            case Route():
                graph, closes = _locate(graphs, edit.closes)
                into = [_locate(graphs, address)[1] for address in edit.into]
                if (reason := reason_against_routing(into, closes, edit.passing)) is not None:
                    raise refuse(f"{edit.path} cannot route {edit.into[0].path} to {edit.closes.path}: {reason}.", edit.path)
                add_child(network, edit.path, edit.layer, graph, min(into), seed, behind=False)
                add_child(network, edit.fusion_path, edit.fusion, graph, closes, seed, behind=True)
                route(graph, into, closes, edit.passing, edit.name, edit.fusion_name)
                rewritten[edit.closes.owner] = None
            case Repeat() | Inherit():
                pass
            case _:
                assert_never(edit)
    for owner in rewritten:
        module = network.get_submodule(owner)
        if not give_back_original(module, owner, signatures[owner], graphs[owner]):
            install(module, graphs[owner])
    hand_down(network, inheritances, remembered)
    return hashes


def _narrow(network: nn.Module, edit: Narrow) -> None:
    owner_path, _, name = edit.path.rpartition(".")
    owner = module_at(network, owner_path)
    if name not in owner._parameters:
        narrow(module_at(network, edit.path), edit.path, edit.in_channels, edit.out_channels)
    elif edit.in_channels is not None or edit.out_channels is None:
        raise refuse(f"{edit.path} is a parameter, and has no other channels than those it puts out.", edit.path)
    else:
        narrow_parameter(owner, name, edit.path, edit.out_channels)


def _locate(graphs: Mapping[str, fx.Graph], address: Address) -> tuple[fx.Graph, fx.Node]:
    graph = graphs.get(address.owner)
    node = None if graph is None else find_call(graph, address)
    if graph is None or node is None:
        raise refuse(f"The call {address.path} was not found in the forward of {address.owner or 'the network'}.", address.path)
    if not node.all_input_nodes:
        raise refuse(f"The call {address.path} has no input.", address.path)
    return graph, node


def working_copy(network: nn.Module, inplace: bool) -> nn.Module:
    """The network itself, or a deep copy."""
    return network if inplace else copy.deepcopy(network)
