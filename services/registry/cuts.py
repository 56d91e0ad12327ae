"""Where a model is cut: contiguous slices of layers, evened out by parameter bytes. Pure and exact."""

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate


def even_cuts(
    layer_bytes: Sequence[int],
    stages: int,
    *,
    embedding_bytes: int = 0,
    head_bytes: int = 0,
    allowed: Collection[int] | None = None,
) -> list[tuple[int, int]]:
    """Cut layers into `stages` half-open ranges, none empty, so that the largest partition is smallest.

    The first partition also holds the embedding, the last one the head. Among the cuts with the smallest largest
    partition, one whose sizes differ least (smallest sum of squares) is taken.

    Args:
        layer_bytes: of each layer.
        stages: partitions.
        embedding_bytes: of what the first partition has besides.
        head_bytes: of what the last one has besides.
        allowed: how many layers may lie before a cut; by default any number.

    Raises:
        ValueError: fewer than one stage, or more than the pieces that the allowed cuts make.
    """
    layers = len(layer_bytes)
    ends = {cut for cut in range(1, layers) if allowed is None or cut in allowed} | {layers}
    if not 1 <= stages <= len(ends):
        raise ValueError(f"{stages} stages for {layers} layers in {len(ends)} pieces")
    before = [0, *accumulate(layer_bytes)]

    def size(first: int, end: int) -> int:
        extra = (embedding_bytes if first == 0 else 0) + (head_bytes if end == layers else 0)
        return before[end] - before[first] + extra

    def largest_of(cost: int, first: int, end: int) -> int | None:
        return max(cost, size(first, end)) if end in ends else None

    slices = _cheapest(layers, stages, largest_of)
    largest = max(size(first, end) for first, end in slices)

    def squares(cost: int, first: int, end: int) -> int | None:
        own = size(first, end)
        return cost + own * own if end in ends and own <= largest else None

    return _cheapest(layers, stages, squares)


def _cheapest(layers: int, stages: int, add: Callable[[int, int, int], int | None]) -> list[tuple[int, int]]:
    """Dynamic programme: the slices of the least cost, where `add(cost, first, end)` is the cost with one more.

    `add` must not fall when `cost` rises; None forbids the slice.
    """
    # cost[end] is the least cost of cutting layers [0, end) into the slices so far; None if it cannot be done.
    cost: list[int | None] = [0] + [None] * layers
    firsts: list[list[int]] = []
    for _ in range(stages):
        longer: list[int | None] = [None] * (layers + 1)
        chosen = [0] * (layers + 1)
        for end in range(1, layers + 1):
            options = (
                (total, first)
                for first in range(end)
                if (known := cost[first]) is not None and (total := add(known, first, end)) is not None
            )
            longer[end], chosen[end] = min(options, default=(None, 0))
        cost = longer
        firsts.append(chosen)
    slices: list[tuple[int, int]] = []
    end = layers
    for chosen in reversed(firsts):
        slices.append((chosen[end], end))
        end = chosen[end]
    return slices[::-1]
