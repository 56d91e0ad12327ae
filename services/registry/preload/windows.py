"""From a hazard to the idle times at which a model is worth its memory: an exact dynamic programme. Pure.

A loaded model costs its price each second; a request that finds it not ready costs 1. Each moment would decide for itself (loaded
while the hazard is above the price, the optimal rule for a renewal process) if loading were free; since it takes `load_s` of memory
before it is of use, what lies between two windows must be worth it.

The price that matches a fixed keep-alive of T seconds is about the hazard that the *average* model has after T (pooled over neighbours, so that
it never rises: the slope of what such keep-alives bring for their memory); `proof.py` moves it until the memory is the same. A model is dropped before
T, or kept (or loaded again) after it, only where its hazard differs from the price by more than a margin: what is known of one model is
uncertain. With equal hazards that is the fixed keep-alive.
"""

import numpy as np
from numpy.typing import NDArray

from .grid import BINS, EDGES, WIDTHS, Floats, bin_of


def loaded_bins(
    hazard: Floats, price: Floats, keep_s: Floats, load_s: float, margin: Floats
) -> NDArray[np.bool_]:
    """For each of several rows and each bin of the idle time, whether to have the model loaded: [rows, BINS].

    Args:
        hazard: arrivals per second of the model in each bin, [BINS] for all rows or [rows, BINS].
        price: of a second loaded, in cold starts, [rows].
        keep_s: idle times before which the benefit of the doubt is for keeping the model, and after which against it; 0 never loads, [rows].
        load_s: seconds that a load takes.
        margin: by what factor the hazard must differ from the price to overcome it, [rows].
    """
    # A row for each bin, so that the loops below run over whole rows.
    rates, widths = np.atleast_2d(hazard).T, WIDTHS[:, None]
    before = np.clip((keep_s - EDGES[:-1, None]) / widths, 0.0, 1.0)
    doubt = np.exp(np.log(margin) * (2 * before - 1))
    alive = np.exp(-rates * widths)
    # Seconds that an idle time which has reached a bin spends in it, in the mean.
    lasts = np.where(rates > 1e-12, -np.expm1(-rates * widths) / np.maximum(rates, 1e-12), widths)
    gains = (rates * doubt - price) * lasts
    to_load = price * load_s
    # What is still to be gained when an idle time reaches a bin's start, loaded then or not.
    on = np.zeros(price.size)
    off = np.zeros(price.size)
    stays = np.zeros((BINS, price.size), dtype=bool)
    comes = np.zeros((BINS, price.size), dtype=bool)
    for place in range(BINS - 1, -1, -1):
        here = gains[place] + alive[place] * on
        away = alive[place] * off
        # Who was not loaded before this bin begins to load so early that it is ready at its start.
        loading = here - to_load
        np.greater(here, away, out=stays[place])
        np.greater(loading, away, out=comes[place])
        on, off = np.maximum(here, away), np.maximum(loading, away)
    stays[:, keep_s <= 0] = comes[:, keep_s <= 0] = False
    loaded = np.zeros((BINS, price.size), dtype=bool)
    state = keep_s > 0
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


def used(loaded: NDArray[np.bool_], from_s: float, to_s: float, load_s: float, loading_s: Floats) -> Floats:
    """Seconds of memory that rows of `loaded_bins` take while an idle time goes from one to the other: [rows].

    Windows later on are loaded for from `load_s` before. The request before the idle time was waited for by a load of its own for
    the first `loading_s` of it, 0 where it found the model ready, [rows].
    """
    total: Floats = loaded.astype(np.float64) @ _between(from_s, to_s, EDGES[:-1], WIDTHS)
    begins = loaded[:, 1:] & ~loaded[:, :-1]
    if begins.any():
        total = total + begins.astype(np.float64) @ _between(from_s, to_s, EDGES[1:-1] - load_s, load_s)
    if loading_s.max() > from_s:
        start, end = np.minimum(loading_s, from_s)[:, None], np.minimum(loading_s, to_s)[:, None]
        total = total + (~loaded * _between(start, end, EDGES[:-1], WIDTHS)).sum(axis=1)
    return total


def waits(loaded: NDArray[np.bool_], idle_s: float, load_s: float, loading_s: Floats) -> Floats:
    """For how many seconds a request waits that ends an idle time, 0 where the model is ready: [rows]. Arguments as for `used`."""
    wait = np.full(len(loaded), load_s)
    soon = 1 + np.flatnonzero((EDGES[1:-1] > idle_s) & (EDGES[1:-1] < idle_s + load_s))
    if soon.size:
        begins = (loaded[:, soon] & ~loaded[:, soon - 1]) * (EDGES[soon] - idle_s)
        under_way = begins.max(axis=1)
        wait = np.where(under_way > 0, under_way, wait)
    ready = loaded[:, bin_of(idle_s)] & (idle_s < EDGES[-1])
    return np.where(loading_s > idle_s, loading_s - idle_s, np.where(ready, 0.0, wait))


def _between(
    from_s: Floats | float, to_s: Floats | float, start_s: Floats, length_s: Floats | float
) -> Floats:
    """How much of a stretch of time lies in each of others."""
    until: Floats = np.minimum(np.maximum(to_s - start_s, 0.0), length_s)
    before: Floats = np.minimum(np.maximum(from_s - start_s, 0.0), length_s)
    return until - before
