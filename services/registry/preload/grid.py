"""Idle times on a logarithmic grid: three bins an octave, from one second to a day and a half. Pure."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

PER_OCTAVE = 3
OCTAVES = 17
BINS = PER_OCTAVE * OCTAVES + 1
"""Bin 0 is all below a second; the last one ends at 2**17 s, beyond which nothing is kept loaded."""

EDGES: Floats = np.concatenate([[0.0], 2.0 ** (np.arange(BINS) / PER_OCTAVE)])
"""`BINS + 1` edges in seconds."""
WIDTHS: Floats = np.diff(EDGES)
MIDDLES_LOG2: Floats = np.concatenate([[-1.0], (np.arange(BINS - 1) + 0.5) / PER_OCTAVE])
"""log2 of a bin's middle, in seconds."""

LEAST_LOG2, MOST_LOG2 = -10, 6
RELATIVE = PER_OCTAVE * (MOST_LOG2 - LEAST_LOG2)
"""Bins of an idle time as a part of the mean one: three an octave from 2**-10 to 2**6, the outermost take the rest."""


def bin_of(seconds: float) -> int:
    """The bin of an idle time; beyond the grid the last one."""
    return min(int(np.searchsorted(EDGES, seconds, side="right")) - 1, BINS - 1)


def relative_bins(mean_s: float) -> NDArray[np.intp]:
    """For each bin its place on the relative grid, given the mean idle time: shape [BINS]."""
    places = np.floor((MIDDLES_LOG2 - np.log2(mean_s) - LEAST_LOG2) * PER_OCTAVE)
    return np.clip(places, 0, RELATIVE - 1).astype(np.intp)


def time_in_bins(start_s: float, end_s: float) -> tuple[int, Floats]:
    """How long an idle time that grows from `start_s` to `end_s` is in each bin: the first bin, and seconds from there."""
    end_s = min(end_s, float(EDGES[-1]))
    if end_s <= start_s:
        return 0, np.empty(0)
    first, last = bin_of(start_s), bin_of(end_s)
    spent = WIDTHS[first : last + 1].copy()
    spent[-1] = end_s - EDGES[last]
    spent[0] -= start_s - EDGES[first]
    return first, spent
