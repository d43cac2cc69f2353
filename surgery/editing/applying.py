"""The one place where networks are changed: a list of edits goes in with a network, the changed network comes out.

Converting and replaying share :func:`perform`. Converting works on the real network and initialises new layers; replaying works on a
skeleton whose tensors come from a file, and checks that the code underneath is still the one that was edited.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

import torch
from torch import fx, nn

from chansurg.surgery.editing.narrowing import narrow
from chansurg.surgery.editing.scaling import scale
from chansurg.surgery.edits import Address, Attach, Bypass, Edit, Insert, LayerSpec, Narrow, Replace, Scale, Swap
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.forwards.rewriting import (
    attach_after,
    bypass,
    called_children,
    find_call,
    give_back_original,
    graph_hash,
    insert_before,
    install,
    replace_call,
    trace_forward,
)
from chansurg.surgery.forwards.tracing import TraceFailure, join_path
from chansurg.surgery.layer import RecipeLayer
from chansurg.surgery.recipe import find_recipe

_ENGINE = "engine"
_ENGINE_LAYERS = {"ScatterAdd": "chansurg.surgery.slicing.scatter"}
"""Layers that the engine itself puts into networks, by the module that defines them."""


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
        edits: in order.
        signatures: for each module whose code the edits rely on, its non-tensor arguments.
        seed: initialises the new layers; ``None`` leaves them empty, for tensors that come from a file.
        expected: hashes of those modules' graphs to check before anything is changed.

    Returns:
        The hash of each of those modules' graphs before the edits, for the journal; ``""`` where a forward cannot be traced by itself.

    Raises:
        ChangedUnderneath: where a hash differs from the expected one.
        Refusal: where an edit cannot be made.
    """
    graphs: dict[str, fx.Graph] = {}
    hashes: dict[str, str] = {}
    for owner, concrete in signatures.items():
        try:
            graphs[owner] = trace_forward(_module(network, owner), owner, concrete)
            hashes[owner] = graph_hash(graphs[owner])
        except TraceFailure:
            hashes[owner] = ""
        if expected is not None and hashes[owner] != expected.get(owner, hashes[owner]):
            raise ChangedUnderneath(owner)
    rewritten: dict[str, None] = {}
    for edit in edits:
        match edit:
            case Swap():
                _swap(network, edit, seed)
            case Narrow():
                narrow(_module(network, edit.path), edit.path, edit.in_channels, edit.out_channels)
            case Scale():
                scale(_module(network, edit.path), edit.path, edit.side, edit.factors, edit.channels)
            case Insert():
                graph, node = _locate(graphs, edit.before)
                _add_child(network, edit, graph, node, seed, behind=False)
                insert_before(graph, node, edit.name)
                rewritten[edit.before.owner] = None
            case Attach():
                graph, node = _locate(graphs, edit.after)
                _, read = _locate(graphs, edit.reads)
                if node < read:
                    raise _refuse(f"{edit.path} would read what is not there yet: {edit.reads.path} runs later.", edit.path)
                _add_child(network, edit, graph, node, seed, behind=True)
                attach_after(graph, node, read, edit.name)
                rewritten[edit.after.owner] = None
            case Replace():
                graph, node = _locate(graphs, edit.at)
                _add_child(network, edit, graph, node, seed, behind=True)
                replace_call(graph, node, edit.name)
                _drop_uncalled(network, edit.at, graph)
                rewritten[edit.at.owner] = None
            case Bypass():
                graph, node = _locate(graphs, edit.at)
                bypass(graph, node)
                _drop_uncalled(network, edit.at, graph)
                rewritten[edit.at.owner] = None
            case _:
                assert_never(edit)
    for owner in rewritten:
        module = network.get_submodule(owner)
        if not give_back_original(module, owner, signatures[owner], graphs[owner]):
            install(module, graphs[owner])
    return hashes


def _locate(graphs: Mapping[str, fx.Graph], address: Address) -> tuple[fx.Graph, fx.Node]:
    graph = graphs.get(address.owner)
    node = None if graph is None else find_call(graph, address)
    if graph is None or node is None:
        raise _refuse(f"The call {address.path} was not found in the forward of {address.owner or 'the network'}.", address.path)
    return graph, node


def _module(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise _refuse(f"{type(network).__name__} has no module {path!r}.", path) from None


def _refuse(what: str, path: str) -> Refusal:
    return Refusal(
        what,
        where=path or "(the network)",
        not_done="The network was not converted.",
        to_do="Carry out the plan on the network that it was made for.",
    )


def _swap(network: nn.Module, edit: Swap, seed: int | None) -> None:
    parent_path, _, name = edit.path.rpartition(".")
    old = _module(network, edit.path)
    if old is network:
        raise _refuse("The network as a whole cannot give way to a layer.", edit.path)
    layer = build_layer(edit.layer, edit.path, seed, _home(old, network))
    layer.train(old.training)
    setattr(network.get_submodule(parent_path), name, layer)


def _add_child(
    network: nn.Module, edit: Insert | Attach | Replace, graph: fx.Graph, node: fx.Node, seed: int | None, *, behind: bool
) -> None:
    """Build the edit's layer and list it among the owner's children where it runs: in front of the call at ``node``, or behind it.

    Children in the order they run are what a plain ``nn.Sequential`` relies on and a reader expects.
    """
    owner = network.get_submodule(edit.path.rpartition(".")[0])
    if hasattr(owner, edit.name):
        raise _refuse(f"{edit.path} exists already.", edit.path)
    anchor = owner.get_submodule(str(node.target)) if node.op == "call_module" else owner
    layer = build_layer(edit.layer, edit.path, seed, _home(anchor, network))
    layer.train(owner.training)
    names = list(owner._modules)
    position = _position_behind(names, graph, node) if behind else _position_of(names, node)
    owner.add_module(edit.name, layer)
    for later in names[position:]:
        owner._modules[later] = owner._modules.pop(later)


def _position_of(names: Sequence[str], node: fx.Node) -> int:
    return names.index(str(node.target)) if node.op == "call_module" and str(node.target) in names else len(names)


def _position_behind(names: Sequence[str], graph: fx.Graph, node: fx.Node) -> int:
    """Behind the child called at ``node`` (for a function, the last one called before it), and behind layers that were put there before."""
    until = [other for other in graph.nodes if other.op == "call_module" and not node < other]
    called = [str(other.target) for other in until if str(other.target) in names]
    if not called:
        return len(names)
    position = names.index(called[-1]) + 1
    added = {str(other.target) for other in until if "address" not in other.meta}
    while position < len(names) and names[position] in added:
        position += 1
    return position


def _drop_uncalled(network: nn.Module, at: Address, graph: fx.Graph) -> None:
    if not at.operation.startswith("self."):
        return
    child = at.operation.removeprefix("self.")
    still_used = called_children(graph)
    if child in still_used or any(name.startswith(f"{child}.") for name in still_used):
        return
    parent_path, _, name = join_path(at.owner, child).rpartition(".")
    network.get_submodule(parent_path)._modules.pop(name, None)


def _home(module: nn.Module, network: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the floating tensors of ``module``, or of the network where it has none."""
    for source in (module, network):
        for tensor in (*source.parameters(), *source.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32


def _layer_class(kind: str, path: str) -> Callable[..., RecipeLayer]:
    home, _, class_name = kind.partition(".")
    recipe = None if home == _ENGINE else find_recipe(home)
    try:
        if recipe is not None:
            return recipe.layer(class_name)
        found: Callable[..., RecipeLayer] = getattr(importlib.import_module(_ENGINE_LAYERS[class_name]), class_name)
    except KeyError:
        raise InputError(
            f"{'The engine' if recipe is None else f'The recipe {home!r}'} has no layer {class_name!r}.",
            where=path,
            not_done="The network was not built.",
            to_do="Install the version of the package that wrote the file.",
        ) from None
    return found


def build_layer(spec: LayerSpec, path: str, seed: int | None, home: tuple[torch.device, torch.dtype]) -> RecipeLayer:
    """Build a layer of a recipe, or of the engine itself, for ``path``.

    Its initialisation draws from a generator of its own, seeded by ``seed`` and the path, so that it does not depend on what else was
    built.

    Raises:
        InputError: where no installed recipe has such a layer.
    """
    layer_class = _layer_class(spec.kind, path)
    device, dtype = home
    with torch.device("meta"):
        layer = layer_class(**spec.arguments)
    if device.type == "meta":
        return layer.to(dtype=dtype)
    layer = layer.to_empty(device="cpu")
    if seed is not None:
        digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
        layer.reset_parameters(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))
    return layer.to(device=device, dtype=dtype)


def working_copy(network: nn.Module, inplace: bool) -> nn.Module:
    """The network itself, or a deep copy."""
    return network if inplace else copy.deepcopy(network)
