"""Changing which children a module has: one gives way to another, one more is added, one is repeated, one goes."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn

from chansurg.surgery.editing.building import build_layer, home_of
from chansurg.surgery.edits import Address, LayerSpec, Repeat, Swap
from chansurg.surgery.edits.places import join_path
from chansurg.surgery.errors import Refusal
from chansurg.surgery.forwards.rewriting import called_children


def module_at(network: nn.Module, path: str) -> nn.Module:
    """The module at a path.

    Raises:
        Refusal: where there is none.
    """
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise refuse(f"{type(network).__name__} has no module {path!r}.", path) from None


def refuse(what: str, path: str) -> Refusal:
    """The error for an edit that does not fit the network."""
    return Refusal(
        what,
        where=path or "(the network)",
        not_done="The network was not converted.",
        to_do="Carry out the plan on the network that it was made for.",
    )


def swap_child(network: nn.Module, edit: Swap, seed: int | None) -> None:
    """Build the edit's layer and put it in the place of the module at its path.

    Raises:
        Refusal: where there is no such module, or it is the whole network.
    """
    parent_path, _, name = edit.path.rpartition(".")
    old = module_at(network, edit.path)
    if old is network:
        raise refuse("The network as a whole cannot give way to a layer.", edit.path)
    layer = build_layer(edit.layer, edit.path, seed, home_of(old, network))
    layer.train(old.training)
    setattr(network.get_submodule(parent_path), name, layer)


def repeat_child(network: nn.Module, edit: Repeat) -> None:
    """Put a copy of the module at the edit's path behind it.

    Raises:
        Refusal: where it is no child of an ``nn.Sequential`` that calls its children in order, or the name is taken.
    """
    module = module_at(network, edit.path)
    parent_path, _, name = edit.path.rpartition(".")
    parent = network.get_submodule(parent_path)
    if module is network or type(parent).forward is not nn.Sequential.forward or "forward" in vars(parent):
        raise refuse(
            f"{edit.path or 'The network'} is no child of a plain nn.Sequential, so a copy behind it would not be called.", edit.path
        )
    if hasattr(parent, edit.name):
        raise refuse(f"{edit.copy} exists already.", edit.copy)
    names = list(parent._modules)
    parent.add_module(edit.name, copy.deepcopy(module))
    _move_behind_new(parent, names[names.index(name) + 1 :])


def add_child(network: nn.Module, path: str, spec: LayerSpec, graph: fx.Graph, node: fx.Node, seed: int | None, *, behind: bool) -> None:
    """Build a layer for ``path`` and list it among its owner's children where it runs: in front of the call at ``node``, or behind it.

    Children in the order they run are what a plain ``nn.Sequential`` relies on and a reader expects.

    Raises:
        Refusal: where the name is taken.
    """
    owner_path, _, name = path.rpartition(".")
    owner = network.get_submodule(owner_path)
    if hasattr(owner, name):
        raise refuse(f"{path} exists already.", path)
    anchor = owner.get_submodule(str(node.target)) if node.op == "call_module" else owner
    layer = build_layer(spec, path, seed, home_of(anchor, network))
    layer.train(owner.training)
    names = list(owner._modules)
    position = _position_behind(names, graph, node) if behind else _position_of(names, node)
    owner.add_module(name, layer)
    _move_behind_new(owner, names[position:])


def _move_behind_new(owner: nn.Module, names: Sequence[str]) -> None:
    """Move these children behind the one that was added last, in their order."""
    for name in names:
        owner._modules[name] = owner._modules.pop(name)


def drop_uncalled(network: nn.Module, at: Address, graph: fx.Graph) -> None:
    """Remove the child that was called at ``at`` where ``graph`` has no more use for it."""
    if not at.operation.startswith("self."):
        return
    child = at.operation.removeprefix("self.")
    still_used = called_children(graph)
    if child in still_used or any(name.startswith(f"{child}.") for name in still_used):
        return
    parent_path, _, name = join_path(at.owner, child).rpartition(".")
    network.get_submodule(parent_path)._modules.pop(name, None)


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
