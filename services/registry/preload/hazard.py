"""How likely a model's next request is at each moment, learned from all models as they go. Pure, online, bounded.

The hazard of a model that has been idle for `t` seconds (arrivals per second, given that none came until then) is a product:

1. the mean rate of its last gaps, which shrinks towards that of all models while it has few;
2. how the hazard falls or rises with `t` in units of the mean gap, learned from all models together;
3. the same once more, for models in a like situation: how many gaps are known, and whether the last one was short or long;
4. how this model differs from them at each `t` (a timer's requests come all in one bin);
5. how this model differs by the hour of the day.

Factors 2 to 5 are tallies of what came against what the factors before them expected (`tally.py`), so that each one only
learns what those do not know, and a new model begins where the others are. What comes late is accounted for while it stays
away: the time that a model is silent counts as soon as it has passed, not when it ends.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .grid import BINS, EDGES, RELATIVE, Floats, bin_of, relative_bins, time_in_bins
from .tally import Tally

FIRST_GAP_S = 600.0
"""A mean gap before anything is known of any model."""
GAPS = 48
"""Gaps in a model's mean, once it has as many."""
_PRIOR_GAPS = 0.5
_PRIOR_SEEN = 0.02
_COUNTS = (1, 3, 8)
_RATIOS = (1 / 16, 1 / 4, 1.0)
SITUATIONS = (len(_COUNTS) + 1) * (len(_RATIOS) + 1)
HOURS = 24
_HOUR_S = 3600.0


@dataclass(slots=True)
class Known:
    """What is known of one model. Times are seconds on the caller's clock."""

    last_s: float
    gaps: int = 0
    mean_s: float = FIRST_GAP_S
    last_gap_s: float = 0.0
    # Idle time that is accounted for already.
    accounted_s: float = 0.0
    own: Tally = field(default_factory=lambda: Tally(BINS, prior=2.0, memory=32.0))
    daily: Tally = field(default_factory=lambda: Tally(HOURS, prior=4.0, memory=64.0))

    @property
    def situation(self) -> int:
        """Which models it is like: by how many of its gaps are known, and the last one as a part of the mean."""
        known = sum(self.gaps >= least for least in _COUNTS)
        ratio = sum(self.last_gap_s >= part * self.mean_s for part in _RATIOS)
        return known * (len(_RATIOS) + 1) + ratio


class Hazards:
    """The estimate for all models. `epoch_s` is what to add to the caller's clock for Unix time (hours of the day)."""

    def __init__(self, epoch_s: float = 0.0) -> None:
        self.models: dict[str, Known] = {}
        self.shape = Tally(RELATIVE, prior=4.0, memory=4096.0)
        # Of the average model: arrivals, and seconds of all models' idle time, by bin.
        self.ages = Tally(BINS, prior=0.0, memory=math.inf)
        self.clock = Tally(BINS, prior=4.0, memory=1024.0)
        self.situations = Tally((SITUATIONS, RELATIVE), prior=8.0, memory=512.0)
        self._epoch_s = epoch_s
        # Of all models' gaps, in logarithms: what a model with none is taken for.
        self.gap_log = math.log(FIRST_GAP_S)
        self.gaps = 0

    def __repr__(self) -> str:
        return f"Hazards(models={len(self.models)}, gaps={self.gaps})"

    def observe(self, model: str, now_s: float) -> None:
        """A request came. One that is older than the last counts as simultaneous with it."""
        known = self.models.get(model)
        if known is None:
            self.models[model] = Known(now_s, mean_s=math.exp(self.gap_log))
            return
        gap = max(0.0, now_s - known.last_s)
        situation = known.situation
        self._account(known, gap)
        place = bin_of(gap)
        relative = int(relative_bins(known.mean_s)[place])
        self.shape.see(relative)
        self.clock.see(place)
        self.ages.see(place)
        self.situations.see((situation, relative))
        known.own.see(place)
        known.daily.see(self._hour(now_s))
        self._learn_gap(known, gap)
        known.last_s = max(now_s, known.last_s)
        known.accounted_s = 0.0

    def account(self, model: str, now_s: float) -> None:
        """Nothing came until now: silence counts as well. Whole bins of the grid only, so that asking often costs nothing."""
        known = self.models[model]
        place = bin_of(max(0.0, now_s - known.last_s))
        if EDGES[place] > known.accounted_s:
            self._account(known, float(EDGES[place]))

    def curve(self, model: str) -> Floats:
        """Arrivals per second in each bin of the idle time, if none came before; shape [BINS]. Without the hour of the day."""
        known = self.models[model]
        return self._by_others(known)[2] * known.own.smooth_factors()

    def average(self) -> Floats:
        """Arrivals per second of the average model in each bin, neighbours pooled so that it never rises; shape [BINS]."""
        return never_rising(
            self.ages.seen + _PRIOR_SEEN, self.ages.expected + _PRIOR_SEEN * math.exp(self.gap_log)
        )

    def hour_factors(self, model: str) -> Floats | None:
        """For each bin of the idle time since the last request, the factor of its hour; None while nothing differs."""
        known = self.models[model]
        if known.gaps < 2 * HOURS:
            return None
        middles = np.minimum((EDGES[:-1] + EDGES[1:]) / 2, EDGES[-2])
        hours = ((known.last_s + self._epoch_s + middles) // _HOUR_S).astype(np.intp) % HOURS
        return known.daily.factors()[hours]

    def forget(self, keep: set[str]) -> None:
        """Drop models outside `keep`; what they taught about all stays."""
        for model in self.models.keys() - keep:
            del self.models[model]

    def _by_others(self, known: Known) -> tuple[Floats, Floats, Floats]:
        """The hazard by the shape alone, with the clock, and with what like situations add; each of shape [BINS]."""
        places = relative_bins(known.mean_s)
        shaped = (self.shape.factors() / known.mean_s)[places]
        common = shaped * self.clock.factors()
        return shaped, common, common * self.situations.factors(known.situation)[places]

    def _account(self, known: Known, idle_s: float) -> None:
        """Enter what was expected while the idle time grew to `idle_s`."""
        first, spent = time_in_bins(known.accounted_s, idle_s)
        if not spent.size:
            return
        bins = slice(first, first + spent.size)
        places = relative_bins(known.mean_s)[bins]
        shaped, common, like = self._by_others(known)
        own = like[bins] * known.own.smooth_factors()[bins]
        self.shape.expect(places, spent / known.mean_s)
        self.ages.expect(bins, spent)
        self.clock.expect(bins, spent * shaped[bins])
        self.situations.expect(places, spent * common[bins], known.situation)
        known.own.expect(bins, spent * like[bins])
        start_s = known.last_s + known.accounted_s
        self._account_hours(known, start_s, known.last_s + idle_s, float((own * spent).sum()))
        known.accounted_s = idle_s

    def _account_hours(self, known: Known, start_s: float, end_s: float, expected: float) -> None:
        """Share out what was expected over the hours that have passed."""
        rate = expected / (end_s - start_s)
        while start_s < end_s:
            until = min(end_s, ((start_s + self._epoch_s) // _HOUR_S + 1) * _HOUR_S - self._epoch_s)
            if until <= start_s:
                until = end_s
            known.daily.expected[self._hour(start_s)] += rate * (until - start_s)
            start_s = until

    def _learn_gap(self, known: Known, gap: float) -> None:
        gap = max(gap, 1e-3)
        self.gaps += 1
        self.gap_log += (math.log(gap) - self.gap_log) / min(self.gaps + 10, 1000)
        weight = max(1.0 / (known.gaps + 1 + _PRIOR_GAPS), 1.0 / GAPS)
        known.mean_s = max(1e-3, known.mean_s + weight * (gap - known.mean_s))
        known.last_gap_s = gap
        known.gaps += 1

    def _hour(self, now_s: float) -> int:
        return int((now_s + self._epoch_s) // _HOUR_S) % HOURS


def never_rising(seen: Floats, idle: Floats) -> Floats:
    """Rates seen / idle, with neighbours pooled wherever a later one is higher (pool adjacent violators); of the same shape.

    Of arrivals by idle time they are the slopes of the hull over what keep-alives bring for their memory. (R. Barlow et al.,
    "Statistical Inference under Order Restrictions", 1972.)
    """
    pools: list[tuple[float, float, int]] = []
    for one, other in zip(seen.tolist(), idle.tolist(), strict=True):
        pool = one, other, 1
        while pools and pool[0] * pools[-1][1] >= pools[-1][0] * pool[1]:
            before = pools.pop()
            pool = before[0] + pool[0], before[1] + pool[1], before[2] + pool[2]
        pools.append(pool)
    return np.repeat([one / other for one, other, _ in pools], [size for *_, size in pools])
