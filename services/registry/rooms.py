"""The room that nodes have, as arrays: the best of 10,000 nodes in a fraction of a millisecond. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stagemesh.v1.registry_pb2 import NodeRecord

Numbers = NDArray[np.int64]


class Rooms:
    """Memory of the nodes that take partitions, in the order given; `free` and `count` follow what is assigned."""

    def __init__(self, nodes: Sequence[NodeRecord], free_bytes: Callable[[NodeRecord], int]) -> None:
        self.nodes = nodes
        self.index: Mapping[str, int] = {node.node_id: place for place, node in enumerate(nodes)}
        self.memory: Numbers = np.array([node.memory_bytes for node in nodes], dtype=np.int64)
        self.free: Numbers = np.array([free_bytes(node) for node in nodes], dtype=np.int64)
        self.count: Numbers = np.zeros(len(nodes), dtype=np.int64)
        kinds: dict[str, list[int]] = {}
        self._keepers: dict[tuple[str, str, int, int], list[int]] = {}
        for place, node in enumerate(nodes):
            kinds.setdefault(node.device, []).append(place)
            for kept in node.keeps:
                key = kept.checkpoint, kept.dtype, kept.first_layer, kept.end_layer
                self._keepers.setdefault(key, []).append(place)
        self._kinds = [np.array(places, dtype=np.intp) for places in kinds.values()]

    def update(self, node_id: str, free: int, count: int) -> None:
        """A node's assignments have changed."""
        place = self.index.get(node_id)
        if place is not None:
            self.free[place], self.count[place] = free, count

    def needs(self, need: Callable[[NodeRecord], int]) -> Numbers:
        """Bytes that something takes on each node; `need` says it for one node and depends on its device only."""
        out = np.zeros(len(self.nodes), dtype=np.int64)
        for places in self._kinds:
            out[places] = need(self.nodes[int(places[0])])
        return out

    def fitting(self, needs: Numbers) -> NDArray[np.intp]:
        """Places of the nodes that have so much free."""
        return np.flatnonzero((self.memory > 0) & (self.free >= needs))

    def best(
        self,
        places: NDArray[np.intp],
        needs: Numbers,
        *,
        there: Iterable[str],
        failures: Mapping[str, int],
        planned: Iterable[str],
        keeps: tuple[str, str, int, int],
    ) -> NodeRecord | None:
        """Of these the one with the fewest of the same there, the fewest failures, then planned, then with the partition kept, least
        filled (in percent, so that nodes that differ by a little memory count as equal), fewest partitions, most free bytes, first.
        """
        if not len(places):
            return None
        places = self._least(places, self._marked((name, 1) for name in there)[places])
        places = self._least(places, self._marked(failures.items())[places])
        places = self._least(places, -self._marked((name, 1) for name in set(planned))[places])
        kept = np.zeros(len(self.nodes), dtype=np.int64)
        kept[self._keepers.get(keeps, [])] = -1
        places = self._least(places, kept[places])
        fill = np.round(1 - (self.free[places] - needs[places]) / self.memory[places], 2)
        places = self._least(places, fill)
        places = self._least(places, self.count[places])
        places = self._least(places, -self.free[places])
        return self.nodes[int(places[0])]

    def _marked(self, marks: Iterable[tuple[str, int]]) -> Numbers:
        out = np.zeros(len(self.nodes), dtype=np.int64)
        for name, value in marks:
            place = self.index.get(name)
            if place is not None:
                out[place] += value
        return out

    @staticmethod
    def _least(places: NDArray[np.intp], key: Numbers | NDArray[np.float64]) -> NDArray[np.intp]:
        return places[key == key.min()]
