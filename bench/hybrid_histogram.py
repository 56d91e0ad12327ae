"""The hybrid histogram policy of Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, section 4: the one to beat. Pure.

Of each model: a histogram of idle times, bins of one minute up to a range (four hours in the paper). At each request:

- more than half of the idle times beyond the range: the next one is forecast (the paper: ARIMA), and the model is loaded from 15 %
  before that until 15 % after;
- else, where the histogram is representative (coefficient of variation of the bins' counts at least 2): it is unloaded at once and
  loaded again from the 5th percentile of the idle times (rounded down) less 10 % until the 99th (rounded up) and 10 % more; a first
  percentile in the first bin means that it stays loaded;
- else it stays loaded for the range ("standard keep-alive").

The forecast here is an ARIMA without its moving average, (p, d, 0) with p up to 2 and d up to 1, by least squares, the best by
Akaike's criterion; the paper leaves the orders to `auto_arima`.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_BIN_S = 60.0
_HEAD, _TAIL = 0.05, 0.99
_MARGIN, _FORECAST_MARGIN = 0.10, 0.15
_CV = 2.0
_FEWEST = 5
_REMEMBERED = 64


@dataclass(slots=True)
class _Seen:
    counts: NDArray[np.int64]
    beyond: int = 0
    gaps: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class HybridHistogram:
    """The policy for all models; the range is in seconds."""

    def __init__(self, range_s: float = 4 * 3600.0) -> None:
        self._range_s = range_s
        self._bins = max(1, round(range_s / _BIN_S))
        self._seen: dict[str, _Seen] = {}

    def window(self, model: str, gap_s: float | None) -> tuple[float, float]:
        """A request came `gap_s` after the last one (None: the first): idle times between which to have the model loaded."""
        seen = self._seen.get(model)
        if seen is None:
            seen = self._seen[model] = _Seen(np.zeros(self._bins, dtype=np.int64))
        if gap_s is not None:
            seen.gaps.append(gap_s)
            place = int(gap_s / _BIN_S)
            if place < self._bins:
                seen.counts[place] += 1
            else:
                seen.beyond += 1
        inside = int(seen.counts.sum())
        if inside + seen.beyond < _FEWEST:
            return 0.0, self._range_s
        if seen.beyond > inside:
            expected = forecast(list(seen.gaps))
            return max(0.0, expected * (1 - _FORECAST_MARGIN)), expected * (1 + _FORECAST_MARGIN)
        mean = inside / self._bins
        if float(seen.counts.std()) / mean < _CV:
            return 0.0, self._range_s
        before = np.cumsum(seen.counts)
        head = int(np.searchsorted(before, _HEAD * inside)) * _BIN_S
        tail = (int(np.searchsorted(before, _TAIL * inside - 1e-9)) + 1) * _BIN_S
        return head * (1 - _MARGIN), tail * (1 + _MARGIN)


def forecast(gaps: list[float]) -> float:
    """The next of a series of positive numbers: ARIMA(p, d, 0), p <= 2, d <= 1, chosen by Akaike's criterion."""
    series = np.asarray(gaps, dtype=np.float64)
    best, answer = math.inf, float(series.mean())
    for differences in (0, 1):
        values = np.diff(series, differences) if differences else series
        for order in (0, 1, 2):
            rows = len(values) - order
            if rows < order + 3:
                continue
            columns = [np.ones(rows)] + [
                values[order - lag - 1 : len(values) - lag - 1] for lag in range(order)
            ]
            design, target = np.column_stack(columns), values[order:]
            weights, *_ = np.linalg.lstsq(design, target, rcond=None)
            error = float(((target - design @ weights) ** 2).mean())
            criterion = math.log(max(error, 1e-9)) + 2 * (order + 2) / rows
            if criterion < best:
                recent = [values[-1 - lag] for lag in range(order)]
                step = float(weights[0] + np.dot(weights[1:], recent))
                best, answer = criterion, step + (float(series[-1]) if differences else 0.0)
    return max(_BIN_S, answer)
