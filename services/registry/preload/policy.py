"""For each request that comes: at which idle times after it the model is to be loaded. Pure, online."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .grid import EDGES, Floats
from .hazard import Hazards
from .proof import Proof
from .windows import loaded_bins, outcome

PRICES: Floats = np.concatenate([[0.0], EDGES[1::2]])
"""Prices of memory that are tried, each named by the idle time after which the average model is not worth it."""
MARGINS = (1.0, 2.5, 8.0)
_ROWS: Floats = np.tile(PRICES, len(MARGINS))
_MARGIN: Floats = np.repeat(np.asarray(MARGINS), PRICES.size)


class Policy:
    """For one or several fixed keep-alives: what takes no more memory than each, with fewer cold starts as far as that is proven.

    Args:
        keep_s: the keep-alives, in seconds, taken as the nearest edge of the grid.
        load_s: seconds that a load takes.
        epoch_s: what to add to the caller's clock for Unix time.
        again_s: for so long a model's windows are not made anew, however many requests come.
    """

    def __init__(
        self, keep_s: Sequence[float], load_s: float, epoch_s: float = 0.0, again_s: float = 0.0
    ) -> None:
        self.hazards = Hazards(epoch_s)
        self.proof = Proof(len(keep_s), _ROWS.size)
        self.load_s = load_s
        self._again_s = again_s
        self._made_s: dict[str, float] = {}
        edges = np.abs(EDGES[None, :] - np.asarray(keep_s, dtype=np.float64)[:, None]).argmin(axis=1)
        self.fixed: NDArray[np.bool_] = np.arange(EDGES.size - 1)[None, :] < edges[:, None]
        # By model, what each way has wanted since its last request.
        self._tried: dict[str, NDArray[np.bool_]] = {}
        # And what was followed.
        self._followed: dict[str, NDArray[np.bool_]] = {}

    def arrive(self, model: str, now_s: float) -> NDArray[np.bool_]:
        """A request came; for each keep-alive the bins of the idle time to have the model loaded in: [len(keep_s), BINS]."""
        known, tried = self.hazards.models.get(model), self._tried.get(model)
        if known is not None and tried is not None:
            idle_s = max(0.0, now_s - known.last_s)
            _, spent_s = outcome(self._followed[model], idle_s, self.load_s)
            self.proof.learn(
                *outcome(self.fixed, idle_s, self.load_s), *outcome(tried, idle_s, self.load_s), spent_s
            )
        self.hazards.observe(model, now_s)
        if model in self._followed and now_s - self._made_s.get(model, -np.inf) < self._again_s:
            return self._followed[model]
        self._made_s[model] = now_s
        self._tried.pop(model, None)
        return self.follow(model)

    def follow(self, model: str) -> NDArray[np.bool_]:
        """The same for a model that is known, by what is known now; what is proven is what was wanted at its last request."""
        curve = self.hazards.curve(model)
        by_hour = self.hazards.hour_factors(model)
        if by_hour is not None:
            curve = curve * by_hour
        tried = loaded_bins(curve, self.hazards.average(), _ROWS, self.load_s, _MARGIN)
        self._tried.setdefault(model, tried)
        best = self.proof.best()
        followed: NDArray[np.bool_] = np.where((best >= 0)[:, None], tried[best], self.fixed)
        self._followed[model] = followed
        return followed

    def pass_time(self, now_s: float) -> None:
        """Account for the silence of all models; worth calling every few minutes."""
        for model in self.hazards.models:
            self.hazards.account(model, now_s)

    def forget(self, keep: set[str]) -> None:
        """Drop models outside `keep`."""
        self.hazards.forget(keep)
        for model in self._tried.keys() - keep:
            del self._tried[model], self._followed[model]
            self._made_s.pop(model, None)
