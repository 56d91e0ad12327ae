"""How often answers of one question are wrong for another that is so alike: what was seen, and what it allows. Pure.

Considered: one threshold of similarity found by trying all of them (the best of many looks lucky); a logistic curve
through all samples (sharp where there is data, and as confident where there is none); the threshold of vCache
(arXiv 2502.03771), which each entry learns for itself from samples of its own (most questions are asked too rarely to
ever collect them). What won is between: a few bands of similarity, each with a confidence sequence of its own for all
entries together, and what an entry has got wrong counts against itself at once (`entry.py`). A band is served only
while the upper bound of its own rate is within what is allowed, so the rate over any mixture of bands is, too. Bands
share nothing: samples of easy pairs say nothing of hard ones, and it does not matter that unserved bands are sampled more.

Samples cost nothing while a band is not served: an alike question is computed anyway, and its answer compared with the
kept one. Once it is served, a share of the hits is computed for real (`Settings.verify_share`).
"""

from bisect import bisect_right
from dataclasses import dataclass

from . import bounds
from .guards import Kind
from .settings import Settings

EDGES = (0.8, 0.9, 0.95)
"""Bands: below 0.8, to 0.9, to 0.95, above."""
KINDS = (Kind.SAME, Kind.LOOSE)
EPOCH = 4000
"""Samples after which a band's older ones are put aside, and then dropped: what was so long ago need not be so today."""


@dataclass(slots=True)
class Counts:
    """Samples of a band and the wrong ones among them, of this epoch and of the one before."""

    samples: int = 0
    wrong: int = 0
    older_samples: int = 0
    older_wrong: int = 0

    @property
    def total(self) -> tuple[int, int]:
        """Samples and wrong ones of both epochs."""
        return self.samples + self.older_samples, self.wrong + self.older_wrong

    def add(self, wrong: bool) -> None:
        """One more."""
        if self.samples >= EPOCH:
            self.older_samples, self.older_wrong = self.samples, self.wrong
            self.samples = self.wrong = 0
        self.samples += 1
        self.wrong += wrong


class Evidence:
    """Samples by kind of pair and band of similarity."""

    def __init__(self) -> None:
        self.counts: dict[tuple[Kind, int], Counts] = {}
        self._bounds: dict[tuple[int, int, float, float], float] = {}

    def __repr__(self) -> str:
        held = {f"{kind}/{band}": each.total for (kind, band), each in sorted(self.counts.items())}
        return f"Evidence({held})"

    def add(self, kind: Kind, similarity: float, wrong: bool) -> None:
        """A pair so alike was compared."""
        self.counts.setdefault((kind, band_of(similarity)), Counts()).add(wrong)

    def bound(self, kind: Kind, similarity: float, settings: Settings) -> float:
        """How many of such pairs are wrong at most; 1 where nothing was seen."""
        return self.bound_of(kind, band_of(similarity), settings)

    def bound_of(self, kind: Kind, band: int, settings: Settings) -> float:
        """The same of a band."""
        counts = self.counts.get((kind, band))
        if counts is None:
            return 1.0
        samples, wrong = counts.total
        known = samples, wrong, settings.confidence, settings.allowed
        if (bound := self._bounds.get(known)) is None:
            if len(self._bounds) > 1000:
                self._bounds.clear()
            bound = bounds.upper(samples, wrong, confidence=settings.confidence, around=settings.allowed)
            self._bounds[known] = bound
        return bound

    def serves(self, settings: Settings) -> bool:
        """Whether there is any band that may be served."""
        return any(
            self.bound_of(kind, band, settings) <= settings.allowed
            for kind, band in self.counts
            if (kind is Kind.SAME or settings.loose) and band_range(band)[1] > settings.min_similarity
        )

    def forget(self) -> None:
        """As if nothing had been seen."""
        self.counts.clear()


def band_of(similarity: float) -> int:
    """The band that a similarity lies in."""
    return bisect_right(EDGES, similarity)


def band_range(band: int) -> tuple[float, float]:
    """From where to where a band goes."""
    edges = (0.0, *EDGES, 1.0)
    return edges[band], edges[band + 1]
