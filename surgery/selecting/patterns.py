"""Sites by name: ``--only`` and ``--skip``, as patterns over their paths.

A pattern is one of a shell's (``*``, ``?``, ``[…]``), and ``*`` goes over dots. It stands for every site whose path it matches, and for
every site inside a module whose path it matches: ``layer3`` and ``layer3.*`` mean the same sites.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from chansurg.surgery.errors import InputError
from chansurg.surgery.plan import Chosen, Plan


def named(full: Plan, only: Sequence[str], skip: Sequence[str]) -> Chosen:
    """The sites that patterns leave over.

    Args:
        full: what the recipe would do if it were free.
        only: patterns; where there are some, a site has to be matched by one of them.
        skip: patterns; no site may be matched by one of them.

    Raises:
        InputError: where a pattern matches no site.
    """
    paths = [site.path for site in full.sites]
    for option, patterns in (("--only", only), ("--skip", skip)):
        for pattern in patterns:
            if not any(_matches(pattern, path) for path in paths):
                raise _matches_nothing(option, pattern, full)
    reasons: dict[str, str] = {}
    for path in paths:
        if only and not any(_matches(pattern, path) for pattern in only):
            reasons[path] = "--only does not name it"
        elif any(_matches(pattern, path) for pattern in skip):
            reasons[path] = "--skip names it"
    return Chosen(frozenset(path for path in paths if path not in reasons), reasons)


def _matches(pattern: str, path: str) -> bool:
    return any(fnmatchcase(part, pattern) for part in _with_those_around(path))


def _with_those_around(path: str) -> Iterator[str]:
    """A path and those of the modules that it lies in."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _matches_nothing(option: str, pattern: str, full: Plan) -> InputError:
    paths = [site.path for site in full.sites]
    left_alone = next((skip for skip in full.skipped if _matches(pattern, skip.path)), None)
    if left_alone is not None:
        why = f" {left_alone.path} is none: {left_alone.reason}."
    else:
        near = difflib.get_close_matches(pattern, [part for path in paths for part in _with_those_around(path)], n=3, cutoff=0.5)
        why = f" Near to it: {', '.join(dict.fromkeys(near))}." if near else ""
    listed = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
    return InputError(
        f"The pattern {pattern!r} matches no site of the recipe {full.recipe}.{why}",
        where=f"option {option} {pattern}",
        not_done="Nothing was converted.",
        to_do=f"Its sites with these options are {listed}. A pattern names sites or modules around them, as in --only 'layer3.*'."
        if paths
        else "With these options the recipe has no site at all; `chansurg inspect` lists the sites of every recipe and mode.",
    )
