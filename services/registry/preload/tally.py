"""How much more often something came than expected, shrunk towards "as expected" while little is known. Pure."""

import numpy as np
from numpy.typing import NDArray

from .grid import Floats


class Tally:
    """Arrivals seen and arrivals expected, cell by cell.

    The factor of a cell is (seen + prior) / (expected + prior): the mean of a gamma distribution around 1 after Poisson
    observations. A cell that has expected or seen more than `memory` forgets half, so that what is recent counts more.
    """

    __slots__ = ("expected", "memory", "prior", "seen")

    def __init__(self, shape: int | tuple[int, ...], *, prior: float, memory: float) -> None:
        self.seen: Floats = np.zeros(shape)
        self.expected: Floats = np.zeros(shape)
        self.prior = prior
        self.memory = memory

    def factors(self, row: int | None = None) -> Floats:
        """The factor of each cell, or of those in one row."""
        seen, expected = (self.seen, self.expected) if row is None else (self.seen[row], self.expected[row])
        return (seen + self.prior) / (expected + self.prior)

    def smooth_factors(self) -> Floats:
        """The same of a tally with one axis, with neighbours weighted in by a quarter each."""
        return (_smooth(self.seen) + self.prior) / (_smooth(self.expected) + self.prior)

    def expect(self, cells: slice | NDArray[np.intp], counts: Floats, row: int | None = None) -> None:
        """So many were expected in these cells; the same cell may come twice."""
        table = self.expected if row is None else self.expected[row]
        if isinstance(cells, slice):
            table[cells] += counts
        else:
            np.add.at(table, cells, counts)

    def see(self, cell: int | tuple[int, int]) -> None:
        """One came."""
        self.seen[cell] += 1.0
        if self.seen[cell] + self.expected[cell] > 2 * self.memory:
            self.seen[cell] /= 2
            self.expected[cell] /= 2

    def dump(self) -> dict[str, list[float]]:
        """Cells that are not empty, by index in flattened order: seen, expected."""
        seen, expected = self.seen.ravel(), self.expected.ravel()
        return {
            str(cell): [round(float(seen[cell]), 3), round(float(expected[cell]), 3)]
            for cell in np.flatnonzero((seen > 0.0005) | (expected > 0.0005))
        }

    def load(self, cells: dict[str, list[float]]) -> None:
        """Take over what `dump` gave.

        Raises:
            ValueError: a cell is not there, or a number is not finite or below 0.
        """
        seen, expected = np.zeros(self.seen.size), np.zeros(self.seen.size)
        for cell, (one, other) in cells.items():
            if not 0 <= int(cell) < seen.size or not (0 <= one < np.inf and 0 <= other < np.inf):
                raise ValueError(f"no such cell of a tally: {cell} {one} {other}")
            seen[int(cell)], expected[int(cell)] = one, other
        self.seen, self.expected = seen.reshape(self.seen.shape), expected.reshape(self.seen.shape)


def _smooth(values: Floats) -> Floats:
    smooth = values / 2
    smooth[1:] += values[:-1] / 4
    smooth[:-1] += values[1:] / 4
    # What would go beyond the ends stays.
    smooth[0] += values[0] / 4
    smooth[-1] += values[-1] / 4
    return smooth
