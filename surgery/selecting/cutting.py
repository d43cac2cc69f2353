"""Where to cut: the sites that cost least in drift for what they save, as many as a user's limits ask for or allow.

Each site is tried alone, and the sites are put into the order of their drift per multiply-accumulate saved. How many of them, from the
first on, is found by bisection, and what decides is always the network with all of them converted: the drift of two sites together is not
the sum of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from chansurg.surgery.edits import Attach
from chansurg.surgery.errors import InputError, Refusal
from chansurg.surgery.plan import Chosen, Plan
from chansurg.surgery.recipe import flag
from chansurg.surgery.selecting.limits import Limits
from chansurg.surgery.selecting.trade import Choice, Trade
from chansurg.surgery.selecting.trials import Paths, Trials

Progress = Callable[[int, int], None]


class Cutting:
    """The search for where to cut.

    Args:
        full: what the recipe would do if it were free.
        trials: on the network.
        limits: what is asked for; one at least.
        progress: told how many trials are done, and of how many.
    """

    def __init__(self, full: Plan, trials: Trials, limits: Limits, progress: Progress | None = None) -> None:
        self._recipe, self._paths = full.recipe, [site.path for site in full.sites]
        self._trains = any(isinstance(edit, Attach) for edit in full.edits)
        self._trials, self._now, self._limits, self._progress = trials, trials.now, limits, progress
        self._saved: dict[str, int] = {}
        self._order: list[str] = []
        self._done = 0

    def choose(self) -> tuple[Chosen, Choice]:
        """The sites to convert, and why these.

        Raises:
            InputError: where the target is met already.
            Refusal: where no choice of sites keeps to the limits; says how far one comes.
        """
        self._saved = {path: self._now - self._trials.macs(frozenset((path,))) for path in self._paths}
        saving = [path for path in self._paths if self._saved[path] > 0]
        if self._limits.target_macs is not None:
            self._check_target(self._limits.target_macs, saving)
        # Where nothing saves anything there is no trade, and what drifts least comes first.
        candidates = saving or list(self._paths)
        for path in candidates:
            self._drift([path])
        self._order = sorted((path for path in candidates if self._drift([path]) is not None), key=self._cost)
        if not self._order:
            raise self._refusal(
                "with every one of its sites the outputs are not finite, or cannot be compared", "Try other options, or another recipe."
            )
        taken = self._taken()
        reasons = {path: self._reason(path, taken) for path in self._paths}
        return Chosen(frozenset(taken), reasons), self._choice(taken, reasons)

    def _cost(self, path: str) -> float:
        drift = self._drift([path])
        assert drift is not None
        return drift / max(self._saved[path], 1)

    def _taken(self) -> list[str]:
        limits = self._limits
        most = self._order[: limits.max_blocks]
        if limits.target_macs is not None:
            taken = self._reaching(limits.target_macs, most)
            if limits.keep_drift is not None and not self._stays(taken, limits.keep_drift):
                raise self._too_far(taken, limits.keep_drift)
            return taken
        if limits.keep_drift is None:
            return most
        kept = self._within(limits.keep_drift)
        if not kept:
            least = min(self._order, key=self._alone)
            raise self._refusal(
                f"no site keeps the outputs within {limits.keep_drift:g}: the least drift is {_number(self._drift([least]))}, at {least}",
                f"Allow more{'' if self._trials.is_calibrated else ', or pass --calibrate with images, which lowers the drift'}.",
            )
        return kept

    def _reaching(self, target: float, most: list[str]) -> list[str]:
        """The fewest sites, from the first on, that reach the target, without those that turn out not to be needed."""
        least = most
        if self._trials.share(frozenset(most)) > target:
            largest = set(sorted(self._order, key=lambda path: -self._saved[path])[: self._limits.max_blocks])
            least = [path for path in self._order if path in largest]
        if (share := self._trials.share(frozenset(least))) > target:
            raise self._refusal(
                f"its sites cannot bring the multiply-accumulates down to {target:g} of the original: the best is {share:.3f}",
                f"Ask for at least {_up(share)}" + (f", or allow more than {len(least)} sites." if len(least) < len(self._order) else "."),
            )
        if least is most:
            low, high = 0, len(most)  # the first `high` reach it, the first `low` do not
            while high - low > 1:
                middle = (low + high) // 2
                if self._trials.share(frozenset(most[:middle])) <= target:
                    high = middle
                else:
                    low = middle
            least = most[:high]
        for path in sorted(least, key=self._alone, reverse=True):
            others = [other for other in least if other != path]
            if others and self._trials.share(frozenset(others)) <= target:
                least = others
        return least

    def _within(self, bound: float) -> list[str]:
        """As many sites, from the first on, as keep the drift within a bound, without those that break it alone; none where all do."""
        most = [path for path in self._order if self._stays([path], bound)][: self._limits.max_blocks]
        if not most or self._stays(most, bound):
            return most
        low, high = 0, len(most)  # the first `low` stay within it, the first `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            if self._stays(most[:middle], bound):
                low = middle
            else:
                high = middle
        return most[:low]

    def _stays(self, paths: Sequence[str], bound: float) -> bool:
        drift = self._drift(paths)
        return drift is not None and drift <= bound

    def _drift(self, paths: Sequence[str]) -> float | None:
        wanted: Paths = frozenset(paths)
        if self._progress is not None and wanted not in self._trials.known:
            self._done += 1
            expected = len(self._paths) + math.ceil(math.log2(len(self._paths) + 1)) + 1
            self._progress(self._done, max(self._done, expected))
        return self._trials.drift(wanted)

    def _alone(self, path: str) -> float:
        drift = self._drift([path])
        return math.inf if drift is None else drift

    def _reason(self, path: str, taken: Sequence[str]) -> str:
        limits = self._limits
        if path in taken:
            return "it costs little for what it saves" if self._saved[path] > 0 else "it drifts little"
        if path not in self._order:
            return "it saves nothing" if self._saved[path] <= 0 else "with it the outputs are not finite, or cannot be compared"
        if limits.target_macs is not None:
            return f"{flag('target_macs')} {limits.target_macs:g} is reached without it"
        breaks_alone = limits.keep_drift is not None and not self._stays([path], limits.keep_drift)
        if limits.max_blocks is not None and len(taken) == limits.max_blocks and not breaks_alone:
            return f"{flag('max_blocks')} {limits.max_blocks} leaves it out: others cost less"
        return f"with it the outputs would drift further than {flag('keep_drift')} {limits.keep_drift:g}"

    def _choice(self, taken: Sequence[str], reasons: Mapping[str, str]) -> Choice:
        listed = [*self._order, *(path for path in self._paths if path not in self._order)]
        tried = {path: self._trials.drift(frozenset((path,))) for path in listed if frozenset((path,)) in self._trials.known}
        return Choice(
            asked=self._limits.given,
            kind=self._trials.inputs.kind,
            inputs=self._trials.inputs.count,
            calibrated=self._trials.is_calibrated,
            sites=tuple(Trade(path, self._saved[path], tried.get(path), path in taken, reasons[path]) for path in listed),
            macs=round(self._trials.share(frozenset(taken)), 4),
            drift=self._drift(taken),
        )

    def _check_target(self, target: float, saving: Sequence[str]) -> None:
        present = self._now / self._trials.at_first
        if present <= target:
            raise InputError(
                f"The target {target:g} is met: the network costs {present:.3f} of the original as it is.",
                where=f"option {flag('target_macs')}",
                not_done="Nothing was converted.",
                to_do="Choose less, or leave the target out.",
            )
        if not saving:
            raise self._refusal(
                "none of its sites saves a multiply-accumulate by being converted",
                f"Convert without a target, then let training shrink it: `chansurg finetune MODEL --data DIR --target-macs {target:g}`."
                if self._trains
                else "Choose other options, or another recipe.",
            )

    def _too_far(self, taken: Sequence[str], bound: float) -> Refusal:
        kept = self._within(bound)
        best = f"{self._trials.share(frozenset(kept)):.3f}" if kept else "no site at all"
        return self._refusal(
            f"{flag('target_macs')} {self._limits.target_macs:g} costs a drift of {_number(self._drift(taken))}, "
            f"and {flag('keep_drift')} {bound:g} allows {best}",
            "Allow more drift, or ask for less.",
        )

    def _refusal(self, why: str, to_do: str) -> Refusal:
        asked = " ".join(f"{flag(name)} {value:g}" for name, value in self._limits.given.items())
        tried = f"{len(self._paths)} sites, on {self._trials.inputs}"
        return Refusal(
            f"The recipe {self._recipe} cannot keep to these limits: {why}.",
            where=f"{asked} ({tried})",
            not_done="Nothing was converted, and nothing was written.",
            to_do=to_do,
        )


def _number(drift: float | None) -> str:
    return "more than can be told" if drift is None else f"{drift:.3g}"


def _up(share: float) -> str:
    return f"{math.ceil(share * 1000) / 1000:.3f}"
