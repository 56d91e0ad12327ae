"""Where to cut a list of operations into pieces, so that the pieces are even. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# More positions than this are thinned out, the narrowest kept.
MOST_POSITIONS = 256


@dataclass(frozen=True, slots=True)
class Cost:
    """One operation: seconds it might take, and whether it has weights or arithmetic of its own."""

    seconds: float
    heavy: bool


def choose(
    costs: Sequence[Cost], crossing: Sequence[float | None], pieces: int | None, most: int
) -> list[int] | None:
    """Cut before these operations.

    Minimises the sum of squares of what the pieces take, each with what it sends on, so that one large piece does not
    keep the others from being even.

    Args:
        costs: of each operation.
        crossing: for position p, the seconds that sending takes when cut before operation p; None where no cut is
            possible.
        pieces: how many there shall be; None is as many as sensible, each with something heavy in it.
        most: of them, when `pieces` is None.

    Returns:
        Increasing positions, one fewer than pieces; None when there are not enough places to cut.
    """
    every = [cost.heavy for cost in costs]
    if not any(every):
        every = [True] * len(costs)
    if pieces is None:
        wanted = max(1, min(most, sum(every)))
        while wanted > 1:
            cuts = _best(costs, crossing, every, wanted)
            if cuts is not None:
                return cuts
            wanted -= 1
        return []
    if pieces == 1:
        return []
    # Of so many pieces some may have nothing heavy.
    return _best(costs, crossing, every, pieces) or _best(costs, crossing, [True] * len(costs), pieces)


def _best(
    costs: Sequence[Cost], crossing: Sequence[float | None], heavy: Sequence[bool], pieces: int
) -> list[int] | None:
    positions = [0, *_thin(crossing, pieces), len(costs)]
    seconds, weight = [0.0], [0]
    for cost, is_heavy in zip(costs, heavy, strict=True):
        seconds.append(seconds[-1] + cost.seconds)
        weight.append(weight[-1] + is_heavy)
    # best[k]: the least sum with the pieces so far ending at positions[k]; before[n][k]: where the last began.
    best = [0.0] + [math.inf] * (len(positions) - 1)
    before: list[list[int]] = []
    for _ in range(pieces):
        after, came = [math.inf] * len(positions), [0] * len(positions)
        for k in range(1, len(positions)):
            end = positions[k]
            sends = crossing[end] if end < len(costs) else 0.0
            for j in range(k):
                start = positions[j]
                if best[j] == math.inf or weight[end] == weight[start]:
                    continue
                total = best[j] + (seconds[end] - seconds[start] + (sends or 0.0)) ** 2
                if total < after[k]:
                    after[k], came[k] = total, j
        best = after
        before.append(came)
    if best[-1] == math.inf:
        return None
    cuts, at = [], len(positions) - 1
    for came in reversed(before):
        at = came[at]
        cuts.append(positions[at])
    return cuts[:-1][::-1]


def _thin(crossing: Sequence[float | None], pieces: int) -> list[int]:
    """Positions where a cut is possible; of many, the narrowest of each stretch."""
    possible = [
        (position, value) for position, value in enumerate(crossing) if position and value is not None
    ]
    most = max(MOST_POSITIONS, 2 * pieces)
    if len(possible) <= most:
        return [position for position, _ in possible]
    stretch = len(possible) / most
    parts = [possible[int(n * stretch) : int((n + 1) * stretch)] for n in range(most)]
    return [min(part, key=lambda item: item[1])[0] for part in parts]
