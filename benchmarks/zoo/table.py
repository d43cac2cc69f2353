"""The results as Markdown: totals, then a row a network. Deterministic: no clock time and no machine is in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Result = Mapping[str, Any]
STEPS = ("converted", "trained", "reloaded")

INTRODUCTION = """# What works on which network

Written by `python benchmarks/zoo --cache FILE`; do not edit. Every builder of torchvision that is not quantized, and one network (the
smallest of the first dozen) of each family of timm, with some more that papers use. Weights are random; statistics and biases too.

- **traced**: `whole`, or how many `parts` below the top torch.fx could follow.
- **rewritten**: how many modules got the forward generated from their own trace, with no edit; `+n` were left; why is told.
- **eval**, **train**: the rewritten network and the original, bit for bit: in eval mode the outputs, a deep copy's too; in training mode
  outputs, batch-norm statistics and every gradient, with dropout and stochastic depth drawing the same numbers. `=` equal, `≠` not.
- For each mode of each recipe: its sites by kind, then `✓` where the converted network gave finite outputs of the right shape, trained
  a step with finite gradients that reach every new parameter, and was saved and loaded again with outputs equal bit for bit. Else what
  happened.
- A network marked `as …` is larger than needed: it was surveyed, planned for and rewritten, and the smaller one of its structure was run.
- **why not**: the reasons most often given for candidates that are no site, over all modes (`n` stands for numbers).
"""


def render(results: Mapping[str, Result]) -> str:
    """The whole document."""
    lines = [INTRODUCTION, "## Totals", "", *_totals(results), ""]
    for source in dict.fromkeys(name.partition("/")[0] for name in results):
        rows = {name: result for name, result in sorted(results.items()) if name.startswith(f"{source}/")}
        lines += [f"## {source}", "", *_table(rows), ""]
    return "\n".join(lines)


def _totals(results: Mapping[str, Result]) -> Iterator[str]:
    yield "| | " + " | ".join(sources := [*dict.fromkeys(name.partition("/")[0] for name in results), "all"]) + " |"
    yield "|---|" + "---:|" * len(sources)
    groups = [[result for name, result in results.items() if source in ("all", name.partition("/")[0])] for source in sources]
    for label, counts in _counts(groups):
        yield f"| {label} | " + " | ".join(str(count) for count in counts) + " |"


def _counts(groups: list[list[Result]]) -> Iterator[tuple[str, list[int]]]:
    def each(label: str, of: Any) -> tuple[str, list[int]]:
        return label, [sum(of(result) for result in group) for group in groups]

    yield each("networks", lambda result: 1)
    yield each("traced whole", lambda result: result.get("regions") == [""])
    yield each("traced in parts", lambda result: result.get("regions", [""]) not in ([""], []))
    yield each("not traced", lambda result: not result.get("regions"))
    yield each("modules rewritten", lambda result: result.get("rewritten", 0))
    yield each("modules left as they are", lambda result: len(result.get("left", {})))
    yield each("run on numbers", lambda result: result.get("run_at") is not None)
    yield each("equal bit for bit in eval mode, deep copies too", lambda result: result.get("eval") is True and result.get("copy") is True)
    yield each("equal bit for bit in training mode", lambda result: result.get("train") is True)
    for recipe, mode in _modes(result for group in groups for result in group):
        name = f"{recipe} {mode}".strip()
        yield each(f"{name}: networks with sites", lambda result, at=(recipe, mode): bool(_found(result, *at).get("sites")))
        yield each(f"{name}: sites", lambda result, at=(recipe, mode): sum(_found(result, *at).get("sites", {}).values()))
        for step in STEPS:
            yield each(f"{name}: {step}", lambda result, at=(recipe, mode), step=step: _found(result, *at).get(step) is True)


def _modes(results: Iterable[Result]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys((recipe, mode) for result in results for recipe, modes in result.get("recipes", {}).items() for mode in modes)
    )


def _found(result: Result, recipe: str, mode: str) -> Result:
    found: Result = result.get("recipes", {}).get(recipe, {}).get(mode, {})
    return found


def _table(rows: Mapping[str, Result]) -> Iterator[str]:
    modes = _modes(rows.values())
    titles = ["network", "traced", "rewritten", "eval", "train", *(f"{recipe} {mode}".strip() for recipe, mode in modes), "why not"]
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for name, result in rows.items():
        yield "| " + " | ".join(_row(name.partition("/")[2], result, modes)) + " |"


def _row(name: str, result: Result, modes: list[tuple[str, str]]) -> Iterator[str]:
    if "failed" in result:
        yield from (name, _plain(result["failed"]), "", "", "", *("" for _ in modes), "")
        return
    regions = result["regions"]
    yield name if result["stand_in"] is None else f"{name} (as {result['stand_in'].partition('/')[2]})"
    yield "whole" if regions == [""] else f"{len(regions)} parts" if regions else "no"
    yield f"{result['rewritten']}" + (f" +{len(result['left'])}" if result["left"] else "")
    yield _equal(result, "eval", "copy")
    yield _equal(result, "train")
    for recipe, mode in modes:
        yield _sites(_found(result, recipe, mode), result["run_at"] is not None)
    yield _why(result, modes)


def _equal(result: Result, *keys: str) -> str:
    if result.get("run_at") is None:
        return ""
    different = [result[key] for key in keys if result[key] is not True]
    return f"≠ {_plain(different[0])}" if different else "="


def _sites(found: Result, was_run: bool) -> str:
    if not found.get("sites"):
        return "–"
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["sites"].items())
    failed = [f"not {step}: {_plain(found[step])}" for step in STEPS if step in found and found[step] is not True]
    return f"{kinds} {failed[0]}" if failed else f"{kinds} ✓" if was_run else kinds


def _why(result: Result, modes: list[tuple[str, str]]) -> str:
    notes = Counter(_numberless(reason) for reason in (*result["untraced"].values(), *result["left"].values()))
    said = [f"rewriting: {reason}" for reason, _ in notes.most_common(1)]
    skipped: Counter[str] = Counter()
    for recipe, mode in modes:
        for reason, count in _found(result, recipe, mode).get("skipped", {}).items():
            if reason != "it is the stem":
                skipped[_numberless(reason)] += count
    said += [f"{count}× {reason}" for reason, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0]))[:3]]
    return _plain("; ".join(said))


def _numberless(reason: str) -> str:
    """Numbers and paths taken out, so that like reasons count together."""
    reason = re.sub(r"\b[\w]+(\.[\w]+)+(:[\w.]+)?(#\d+)?", "…", reason)
    return re.sub(r"\d+(x\d+)*", "n", reason)


def _plain(text: object) -> str:
    return " ".join(str(text).replace("|", "/").split())
