"""For each request that comes: at which idle times after it the model is to be loaded. Pure, online."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .grid import BINS, EDGES, Floats
from .hazard import Hazards
from .proof import Proof
from .windows import loaded_bins, used, waits

MARGINS = (1.0, 1.5, 2.5, 8.0)
"""By what factor a model must differ from the average one, to be kept other than the fixed keep-alive keeps it: a way for each."""
_Any = TypeVar("_Any", np.float64, np.bool_)
_MIDDLES: Floats = (EDGES[:-1] + EDGES[1:]) / 2


@dataclass(slots=True)
class _Trial:
    """What is wanted in the idle time of a model, by the fixed keep-alives, by all ways and by what is followed, one below the other:
    [settings x (1 + ways + 1), BINS]; for how many of its seconds a load of its last request goes on, for each of these rows. Until `settled_s`
    its memory is accounted for.
    """

    rows: NDArray[np.bool_]
    loading_s: Floats
    settled_s: float = 0.0


class Policy:
    """For one or several fixed keep-alives: what takes no more memory than each, with fewer cold starts as far as that is proven.

    Args:
        keep_s: the keep-alives, in seconds, taken as the nearest edge of the grid.
        load_s: seconds that a load takes.
        epoch_s: what to add to the caller's clock for Unix time.
    """

    def __init__(self, keep_s: Sequence[float], load_s: float, epoch_s: float = 0.0) -> None:
        self.hazards = Hazards(epoch_s)
        self.proof = Proof(len(keep_s), len(MARGINS))
        self.load_s = load_s
        keep = np.asarray(keep_s, dtype=np.float64)
        edges = np.abs(EDGES[None, :] - keep[:, None]).argmin(axis=1)
        self.fixed: NDArray[np.bool_] = np.arange(BINS)[None, :] < edges[:, None]
        self._keep_s: Floats = np.repeat(keep, len(MARGINS))
        self._margin: Floats = np.tile(MARGINS, keep.size)
        self._trials: dict[str, _Trial] = {}

    def arrive(self, model: str, now_s: float) -> NDArray[np.bool_]:
        """A request came; for each keep-alive the bins of the idle time to have the model loaded in: [len(keep_s), BINS]."""
        self.learn(model, now_s)
        return self.follow([model], now_s)[0]

    def learn(self, model: str, now_s: float) -> None:
        """A request came. What the model is wanted for stays as it was, counted from now, until `follow`."""
        known, trial = self.hazards.models.get(model), self._trials.get(model)
        if known is not None and trial is not None:
            idle_s = max(0.0, now_s - known.last_s)
            self._settle(trial, idle_s)
            trial.loading_s = waits(trial.rows, idle_s, self.load_s, trial.loading_s)
            trial.settled_s = 0.0
            fixed, ways, _ = self._split(trial.loading_s == 0)
            self.proof.learn(fixed, ways, now_s)
        self.hazards.observe(model, now_s)

    def follow(self, models: Sequence[str], now_s: float) -> NDArray[np.bool_]:
        """What known models are wanted for from now on, by what is known now: [len(models), len(keep_s), BINS]."""
        settings, ways = self.proof.ahead.shape
        price = np.interp(self._keep_s, _MIDDLES, self.hazards.average()) * np.exp(self.proof.moved.ravel())
        many = len(models)
        curves = np.stack([self._curve(model) for model in models])
        if many > 1:
            curves = np.repeat(curves, price.size, axis=0)
        tried = loaded_bins(
            curves,
            np.tile(price, many),
            np.tile(self._keep_s, many),
            self.load_s,
            np.tile(self._margin, many),
        ).reshape(many, settings, ways, BINS)
        best = self.proof.best()
        chosen = tried[:, np.arange(settings), best]
        followed: NDArray[np.bool_] = np.where((best >= 0)[None, :, None], chosen, self.fixed)
        for model, rows, one in zip(models, tried.reshape(many, -1, BINS), followed, strict=True):
            self._replace(model, np.concatenate([self.fixed, rows, one]), now_s)
        return followed

    def pass_time(self, now_s: float) -> None:
        """Account for the silence of all models; worth calling every few minutes."""
        for model, known in self.hazards.models.items():
            before_s = known.accounted_s
            self.hazards.account(model, now_s)
            trial = self._trials.get(model)
            if trial is not None and known.accounted_s > before_s:
                self._settle(trial, known.accounted_s)

    def forget(self, keep: set[str]) -> None:
        """Drop models outside `keep`."""
        self.hazards.forget(keep)
        for model in self._trials.keys() - keep:
            del self._trials[model]

    def _curve(self, model: str) -> Floats:
        by_hour = self.hazards.hour_factors(model)
        curve = self.hazards.curve(model)
        return curve if by_hour is None else curve * by_hour

    def _replace(self, model: str, rows: NDArray[np.bool_], now_s: float) -> None:
        trial = self._trials.get(model)
        if trial is None:
            # Nobody expected the first request: it loads.
            self._trials[model] = _Trial(rows, np.full(len(rows), self.load_s))
            return
        self._settle(trial, max(0.0, now_s - self.hazards.models[model].last_s))
        trial.rows = rows

    def _settle(self, trial: _Trial, idle_s: float) -> None:
        """Account for the memory of an idle time up to now."""
        if idle_s > trial.settled_s:
            found = used(trial.rows, trial.settled_s, idle_s, self.load_s, trial.loading_s)
            trial.settled_s = idle_s
            self.proof.spend(*self._split(found))

    def _split(self, values: NDArray[_Any]) -> tuple[NDArray[_Any], NDArray[_Any], NDArray[_Any]]:
        """Of the fixed keep-alives, [settings]; of the ways, [settings, ways]; of what is followed, [settings]."""
        settings, ways = self.proof.ahead.shape
        middle = values[settings:-settings].reshape(settings, ways)
        return values[:settings], middle, values[-settings:]
