"""From a hazard to the idle times at which a model is worth its memory: an exact dynamic programme. Pure.

A loaded model costs its price each second; a request that finds it not ready costs 1. Each moment would decide for itself (loaded
while the hazard is above the price, the optimal rule for a renewal process) if loading were free; since it takes `load_s` of memory
before it is of use, what lies between two windows must be worth it.

The price is named by an idle time T: it is the hazard that the *average* model has after T, so that the average model is kept for
T, as a fixed keep-alive would. Rates that rise and fall for all models alike move both sides of the comparison and change nothing. A model is
dropped before T, or kept (or loaded again) after it, only where its hazard differs from the price by more than `MARGIN`: what is known
of one model is uncertain, and where nothing is known the fixed keep-alive holds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .grid import BINS, EDGES, WIDTHS, Floats, bin_of

MARGIN = 1.5


def loaded_bins(
    hazard: Floats,
    average: Floats,
    keep_s: Sequence[float] | Floats,
    load_s: float,
    margin: float | Floats = MARGIN,
) -> NDArray[np.bool_]:
    """For each idle time T in `keep_s` and each bin, whether to have the model loaded: [len(keep_s), BINS].

    Args:
        hazard: arrivals per second of the model in each bin of the idle time, [BINS].
        average: the same of the average model.
        keep_s: seconds that the average model is kept; 0 keeps none.
        load_s: seconds that a load takes.
        margin: by what factor the model must differ.
    """
    keep = np.asarray(keep_s, dtype=np.float64)
    price = np.interp(keep, (EDGES[:-1] + EDGES[1:]) / 2, average)
    # A row for each bin, so that the loops below run over whole rows.
    rates, widths = hazard[:, None], WIDTHS[:, None]
    # Before T the benefit of the doubt is for keeping it, after T against it.
    before = np.clip((keep - EDGES[:-1, None]) / widths, 0.0, 1.0)
    doubt = np.exp(np.log(np.asarray(margin, dtype=np.float64)) * (2 * before - 1))
    alive = np.exp(-hazard * WIDTHS).tolist()
    # Seconds that an idle time which has reached a bin spends in it, in the mean.
    lasts = np.where(rates > 1e-12, -np.expm1(-rates * widths) / np.maximum(rates, 1e-12), widths)
    gains = (rates * doubt - price) * lasts
    to_load = price * load_s
    # What is still to be gained when an idle time reaches a bin's start, loaded then or not.
    on = np.zeros(keep.size)
    off = np.zeros(keep.size)
    stays = np.zeros((BINS, keep.size), dtype=bool)
    comes = np.zeros((BINS, keep.size), dtype=bool)
    for place in range(BINS - 1, -1, -1):
        here = gains[place] + alive[place] * on
        away = alive[place] * off
        # Who was not loaded before this bin begins to load so early that it is ready at its start.
        loading = here - to_load
        np.greater(here, away, out=stays[place])
        np.greater(loading, away, out=comes[place])
        on, off = np.maximum(here, away), np.maximum(loading, away)
    stays[:, keep <= 0] = comes[:, keep <= 0] = False
    loaded = np.zeros((BINS, keep.size), dtype=bool)
    state = keep > 0
    for place in range(BINS):
        state = np.where(state, stays[place], comes[place])
        loaded[place] = state
    return np.ascontiguousarray(loaded.T)


def windows(loaded: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Idle times, from and to in seconds, at which a row of `loaded_bins` has the model ready."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], loaded, [False]]).astype(np.int8)))
    return [
        (float(EDGES[start]), float(EDGES[end]))
        for start, end in zip(changes[::2], changes[1::2], strict=True)
    ]


def outcome(loaded: NDArray[np.bool_], idle_s: float, load_s: float) -> tuple[NDArray[np.bool_], Floats]:
    """What rows of `loaded_bins` would have done in an idle time: whether ready at its end, and seconds of memory."""
    begins: NDArray[np.bool_] = loaded & ~np.roll(loaded, 1, axis=1)
    begins[:, 0] = False
    ready: NDArray[np.bool_] = loaded[:, bin_of(idle_s)] & (idle_s < EDGES[-1])
    used: Floats = loaded.astype(np.float64) @ np.clip(idle_s - EDGES[:-1], 0.0, WIDTHS)
    if begins.any():
        used = used + begins.astype(np.float64) @ np.clip(idle_s - (EDGES[:-1] - load_s), 0.0, load_s)
    return ready, used
