"""Counters that one thread counts with: an addition each, where prometheus_client's own take a lock and four calls."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Tally:
    """One count; `inc` belongs to one thread, and any may read `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Count so many; raises `ValueError` for less than none."""
        if amount < 0:
            raise ValueError(f"a counter cannot go back by {-amount}")
        self.value += amount


class Tallies(Collector):
    """A counter with labels, as a registry collects it. `name` ends in `_total`."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name = name
        self._text = text
        self._names = labels
        self._children: dict[tuple[str, ...], Tally] = {}

    def __repr__(self) -> str:
        return f"Tallies({self._name}, {len(self._children)} children)"

    def labels(self, *values: str) -> Tally:
        """The count of these label values; raises `ValueError` when it is not one for each label."""
        child = self._children.get(values)
        if child is None:
            if len(values) != len(self._names):
                raise ValueError(f"{self._name} has the labels {self._names}, not {len(values)} of them")
            child = self._children[values] = Tally()
        return child

    def count(self, *values: str, amount: float = 1.0) -> None:
        """Count so many of these label values; the same as `labels(...).inc(...)`, in one step."""
        child = self._children.get(values) or self.labels(*values)
        if amount < 0:
            raise ValueError(f"a counter cannot go back by {-amount}")
        child.value += amount

    def describe(self) -> Iterable[Metric]:
        """The name alone: a registry asks for it to find doubles."""
        return [CounterMetricFamily(self._name, self._text)]

    def collect(self) -> Iterable[Metric]:
        """All counts; called from any thread."""
        family = CounterMetricFamily(self._name, self._text, labels=self._names)
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value)
        return [family]
