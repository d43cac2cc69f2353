"""Whether one call of a network can be edited, and if not, why.

An edit must reach the call it means and nothing else. So a module that is called twice, goes by two names, shares a weight with another
or has its weight read by other code is left alone; and where a forward has to be rewritten, it must do by itself what it does inside the
network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx, nn

from chansurg.surgery.edits import Address
from chansurg.surgery.edits.places import join_path
from chansurg.surgery.forwards.rewriting import trace_forward
from chansurg.surgery.forwards.tracing import TraceFailure
from chansurg.surgery.survey.regions import Call, Region


class Editability:
    """Reasons against edits, for the calls of one surveyed network.

    Args:
        network: the meta copy that was traced.
        regions: its traced parts.
        observed: how often each module was called when the network ran on shapes; empty where it was traced as a whole.
    """

    def __init__(self, network: nn.Module, regions: Sequence[Region], observed: Mapping[str, int]) -> None:
        self._network = network
        self._observed = observed
        self._layer_calls = Counter(node.meta["path"] for region in regions for node in region.nodes if node.op == "call_module")
        self._names: dict[int, list[str]] = {}
        self._holders: dict[int, list[str]] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            self._names.setdefault(id(module), []).append(path)
        for path, module in network.named_modules():
            for parameter in module.parameters(recurse=False):
                self._holders.setdefault(id(parameter), []).append(path)
        reads = [(join_path(region.path, str(node.target)), node) for region in regions for node in region.nodes if node.op == "get_attr"]
        self._read = {path.rpartition(".")[0]: node for path, node in reads}
        self._parameter_reads = Counter(path for path, _ in reads)
        self._forwards: dict[str, Counter[str] | str] = {}

    def of_module(self, path: str) -> str | None:
        """Why the module at ``path`` cannot be replaced or narrowed, or ``None``."""
        module = self._network.get_submodule(path)
        if (reason := self.of_tree(path)) is not None:
            return reason
        if path in self._read:
            address = self._read[path].meta.get("address")
            return f"its weight is read by the code of {address.owner if address else 'another module'}"
        if hasattr(module, "parametrizations") or module._forward_pre_hooks:
            return "its weight is computed from other parameters"
        return None

    def of_tree(self, path: str) -> str | None:
        """Why the module at ``path``, with all below it, is not one for itself, or ``None``."""
        module = self._network.get_submodule(path)
        if max(self._layer_calls[path], self._observed.get(path, 0)) > 1:
            return "it is called more than once"
        if len(names := self._names[id(module)]) > 1:
            return f"it goes by several names ({', '.join(names[:3])})"
        for parameter in module.parameters():
            if others := [holder for holder in self._holders[id(parameter)] if holder != path and not holder.startswith(f"{path}.")]:
                return f"it shares a weight with {others[0]}"
        return None

    def of_parameter(self, path: str) -> str | None:
        """Why the parameter at ``path``, which the code of a module reads, cannot be narrowed, or ``None``."""
        if len(holders := self._holders[id(self._network.get_parameter(path))]) > 1:
            return f"{' and '.join(holders[:2])} share it"
        return "it is read more than once" if self._parameter_reads[path] > 1 else None

    def of_call(self, region: Region, address: Address, calls: Sequence[Call]) -> str | None:
        """Why the forward that makes the call cannot be rewritten, or ``None``."""
        owner = address.owner
        if len(calls) > 1 or self._observed.get(owner, 0) > 1:
            return f"{owner} is called {max(len(calls), self._observed.get(owner, 0))} times"
        if calls[0].reason is not None:
            return calls[0].reason
        if owner not in self._forwards:
            self._forwards[owner] = self._own_calls(owner, calls[0])
        by_itself = self._forwards[owner]
        if isinstance(by_itself, str):
            return by_itself
        made = [node.meta.get("address") for node in region.nodes]
        made += [call.address for calls in region.calls.values() for call in calls]
        inside = sum(1 for at in made if at is not None and (at.owner, at.operation) == (owner, address.operation))
        if by_itself[address.operation] != inside:
            return f"the forward of {owner or 'the network'} does something else by itself than inside the network"
        return None

    def _own_calls(self, owner: str, call: Call) -> Counter[str] | str:
        """How often a forward traced by itself makes each operation; or the reason why it cannot be traced so."""
        try:
            graph = trace_forward(self._network.get_submodule(owner), owner, call.concrete)
        except TraceFailure as failure:
            return f"the code of {owner or 'the network'} cannot be rewritten: {failure}"
        return Counter(node.meta["address"].operation for node in graph.nodes if isinstance(node.meta.get("address"), Address))


def is_own_child(owner: str, node: fx.Node) -> bool:
    """Whether the module that ``node`` calls lies below the module whose forward calls it."""
    return node.op != "call_module" or not owner or str(node.meta["path"]).startswith(f"{owner}.")
