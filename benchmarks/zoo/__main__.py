"""The support matrix: what was found in every network, what was rewritten, and whether it still works. Writes docs/SUPPORT.md.

    python benchmarks/zoo --cache zoo.json [--only PATTERN] [--recipes NAMES] [--output docs/SUPPORT.md]

Results are kept in the cache network by network and recipe by recipe, so a run can be interrupted, and a new recipe is tried without the
others; delete the file, or entries of it, to check anew. With ``--only`` the networks of that pattern (as in a shell) are checked and
printed, and the table is not written.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import time
from pathlib import Path

import torch
from checks import check, missing_recipes
from networks import Network, networks
from table import render

from chansurg.surgery.recipe import installed_recipes


def main() -> None:
    """Check what the cache does not hold, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a JSON file outside the repository")
    parser.add_argument("--only", metavar="PATTERN", help="for example 'torchvision/res*'")
    parser.add_argument("--recipes", metavar="NAMES", default=",".join(installed_recipes()), help="for example pix,pcs; else all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[2] / "docs" / "SUPPORT.md")
    arguments = parser.parse_args()
    recipes = arguments.recipes.split(",")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    cache = json.loads(arguments.cache.read_text()) if arguments.cache.exists() else {}
    if "networks" not in cache:
        cache["networks"] = [[network.name, network.family, network.stand_in] for network in networks()]
    results = cache.setdefault("results", {})
    chosen = [Network(*entry) for entry in cache["networks"] if fnmatch.fnmatch(entry[0], arguments.only or "*")]
    for network in chosen:
        known = None if arguments.only else results.get(network.name)
        if known is None or missing_recipes(known, recipes):
            started = time.perf_counter()
            try:
                results[network.name] = check(network, recipes, known)
            except Exception as error:  # the table says so, and the next network has its turn
                results[network.name] = {"family": network.family, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
            _keep(cache, arguments.cache)
            print(_line(network.name, results[network.name], time.perf_counter() - started), flush=True)
    if not arguments.only:
        arguments.output.write_text(render(results))


def _keep(cache: dict[str, object], path: Path) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(cache))
    temporary.replace(path)


def _line(name: str, result: dict[str, object], seconds: float) -> str:
    shown = {key: result[key] for key in ("failed", "run_at", "rewritten", "eval", "copy", "train") if key in result}
    if result.get("untraced") or result.get("left"):
        shown["left"] = [*result["untraced"].items(), *result["left"].items()][:3]  # type: ignore[attr-defined]
    for modes in result.get("recipes", {}).values():  # type: ignore[attr-defined]
        for mode, found in modes.items():
            shown[mode] = [found["sites"], *(found.get(key) for key in ("converted", "trained", "reloaded"))]
    return f"{name} {seconds:.0f}s {shown}"


if __name__ == "__main__":
    main()
