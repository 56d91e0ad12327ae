"""What policies of keeping models loaded cost and bring, on one set of streams. Pure: arrival times in, curves out.

A model that is not ready when a request comes is loaded, which takes `load_s`; requests that find it loading wait as well. A request
itself takes no time, as in Shahrad et al., so every second that a model is loaded or loading is memory that nobody uses:
that is counted for every policy in the same way. The policies learn from the first part of the streams, which is not counted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from stagemesh.services.registry.preload.grid import (  # type: ignore[import-not-found]
    EDGES,
    WIDTHS,
    bin_of,
)
from stagemesh.services.registry.preload.policy import Policy  # type: ignore[import-not-found]

from bench.hybrid_histogram import HybridHistogram

Floats = NDArray[np.float64]
_ACCOUNT_S = 300.0


@dataclass(frozen=True)
class Curve:
    """One policy at several settings: idle loaded seconds, and the share of requests that found the model not ready."""

    name: str
    settings: list[float]
    memory_s: Floats
    cold: Floats

    def at(self, memory_s: float) -> float:
        """The least share of cold starts at no more memory than this; 1 where there is no such setting."""
        order = np.argsort(self.memory_s)
        memory, cold = self.memory_s[order], np.minimum.accumulate(self.cold[order])
        return float(np.interp(memory_s * (1 + 1e-9), memory, cold, left=1.0))


@dataclass
class Streams:
    """Arrivals of all models in order of time; what is before `counted_from_s` is only learned from."""

    arrivals: list[tuple[float, str]]
    counted_from_s: float
    end_s: float
    load_s: float

    @classmethod
    def of(cls, times: Mapping[str, Sequence[float]], *, learn: float, load_s: float) -> "Streams":
        """Of arrival times by model; the first part `learn` of the time is not counted."""
        arrivals = sorted((at, model) for model, series in times.items() for at in series)
        end = arrivals[-1][0]
        return cls(arrivals, learn * end, end, load_s)


@dataclass
class _Account:
    """Memory and cold starts of a policy at each of its settings."""

    streams: Streams
    settings: int
    memory_s: Floats = field(init=False)
    cold: NDArray[np.int64] = field(init=False)
    requests: int = 0
    # By model: since when it is idle, until what idle time it still loads, and what the policy wants.
    state: dict[str, tuple[float, Floats, "Wants"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory_s = np.zeros(self.settings)
        self.cold = np.zeros(self.settings, dtype=np.int64)

    def arrive(self, model: str, now_s: float) -> None:
        """Settle the idle time that ends; the caller says afterwards what the policy `wants` for the next one."""
        counted = now_s >= self.streams.counted_from_s
        load_s = self.streams.load_s
        known = self.state.get(model)
        if known is None:
            self._loading = np.full(self.settings, load_s)
            cold = np.ones(self.settings, dtype=bool)
        else:
            self._use(known, now_s)
            since, loading, wants = known
            idle = now_s - since
            begins, ready = wants.at(idle, load_s)
            # It is ready, or will be: when what it loads now is loaded, or after a load that starts now.
            rest = np.where(
                loading > idle, loading - idle, np.where(ready, 0.0, np.where(begins > 0, begins, load_s))
            )
            cold = rest > 0
            self._loading = rest
        if counted:
            self.requests += 1
            self.cold += cold

    def wants(self, model: str, now_s: float, wants: "Wants") -> None:
        """What the policy wants for the idle time that begins now."""
        self.state[model] = now_s, self._loading, wants

    def close(self) -> None:
        """The streams end: count what is loaded until then."""
        for known in self.state.values():
            self._use(known, self.streams.end_s)

    def _use(self, known: "tuple[float, Floats, Wants]", until_s: float) -> None:
        since, loading, wants = known
        load_s = self.streams.load_s
        from_s = max(0.0, self.streams.counted_from_s - since)
        to_s = until_s - since
        if to_s > from_s:
            self.memory_s += wants.used(to_s, loading, load_s) - wants.used(from_s, loading, load_s)


class Wants:
    """What a policy wants for one idle time, at each of its settings."""

    def at(self, idle_s: float, load_s: float) -> tuple[Floats, NDArray[np.bool_]]:
        """For how many seconds a load under way still takes (0: none), and whether the model is ready."""
        raise NotImplementedError

    def used(self, idle_s: float, loading_s: Floats, load_s: float) -> Floats:
        """Seconds loaded or loading until then; it loads until `loading_s` in any case."""
        raise NotImplementedError


class Window(Wants):
    """Loaded between two idle times; each an array over settings."""

    def __init__(self, start_s: Floats, end_s: Floats) -> None:
        self.start_s, self.end_s = start_s, end_s

    def at(self, idle_s: float, load_s: float) -> tuple[Floats, NDArray[np.bool_]]:
        """See `Wants`."""
        ready = (self.start_s <= idle_s) & (idle_s <= self.end_s) & (self.end_s > 0)
        begins = self.start_s - idle_s
        return np.where((begins > 0) & (begins < load_s), begins, 0.0), ready

    def used(self, idle_s: float, loading_s: Floats, load_s: float) -> Floats:
        """See `Wants`."""
        begins = np.maximum(self.start_s - np.where(self.start_s > 0, load_s, 0.0), 0.0)
        window = np.clip(idle_s - begins, 0.0, np.maximum(self.end_s - begins, 0.0))
        both = np.clip(np.minimum(idle_s, loading_s) - begins, 0.0, np.maximum(self.end_s - begins, 0.0))
        used: Floats = np.minimum(loading_s, idle_s) + window - both
        return used


class Bins(Wants):
    """Loaded in some bins of the idle time: [settings, BINS]."""

    def __init__(self, loaded: NDArray[np.bool_], load_s: float) -> None:
        self.loaded = loaded
        starts = loaded.copy()
        starts[:, 0] = False
        starts[:, 1:] &= ~loaded[:, :-1]
        self.starts = starts if starts.any() else None

    def at(self, idle_s: float, load_s: float) -> tuple[Floats, NDArray[np.bool_]]:
        """See `Wants`."""
        place = bin_of(idle_s)
        ready = self.loaded[:, place] if idle_s < EDGES[-1] else np.zeros(len(self.loaded), dtype=bool)
        begins = np.zeros(len(self.loaded))
        if self.starts is not None:
            soon = (EDGES[:-1] > idle_s) & (EDGES[:-1] < idle_s + load_s)
            begins = np.where(self.starts & soon, EDGES[:-1] - idle_s, 0.0).max(axis=1)
        return begins, ready

    def used(self, idle_s: float, loading_s: Floats, load_s: float) -> Floats:
        """See `Wants`."""
        spent = np.clip(idle_s - EDGES[:-1], 0.0, WIDTHS)
        used: Floats = self.loaded @ spent
        if self.starts is not None:
            used = used + self.starts @ np.clip(idle_s - (EDGES[:-1] - load_s), 0.0, load_s)
        until = np.minimum(loading_s, idle_s)
        if until.any():
            # Of the time to load, what is not in bins that count already.
            inside = (self.loaded * np.clip(until[:, None] - EDGES[:-1], 0.0, WIDTHS)).sum(axis=1)
            used = used + until - inside
        return used


def fixed(streams: Streams, keep_s: Sequence[float]) -> Curve:
    """Keep each model for a time after its last request, each time given."""
    ends = np.asarray(keep_s, dtype=np.float64)
    wants = Window(np.zeros(ends.size), ends)
    return _replay("fixed keep-alive", streams, list(keep_s), lambda model, now, gap: wants)


def histogram(streams: Streams, ranges_s: Sequence[float]) -> Curve:
    """The hybrid histogram policy, one for each range."""
    policies = [HybridHistogram(each) for each in ranges_s]

    def decide(model: str, now_s: float, gap: float | None) -> Wants:
        found = np.array([policy.window(model, gap) for policy in policies])
        return Window(found[:, 0], found[:, 1])

    return _replay("hybrid histogram", streams, list(ranges_s), decide)


def ours(streams: Streams, keep_s: Sequence[float]) -> Curve:
    """Ours in the place of a fixed keep-alive, for each of these times."""
    policy = Policy(keep_s, streams.load_s)
    accounted = [0.0]

    def decide(model: str, now_s: float, gap: float | None) -> Wants:
        if now_s - accounted[0] >= _ACCOUNT_S:
            accounted[0] = now_s
            policy.pass_time(now_s)
        return Bins(policy.arrive(model, now_s), streams.load_s)

    return _replay("ours", streams, list(keep_s), decide)


def _replay(
    name: str, streams: Streams, settings: list[float], decide: Callable[[str, float, float | None], Wants]
) -> Curve:
    account = _Account(streams, len(settings))
    last: dict[str, float] = {}
    for now_s, model in streams.arrivals:
        gap = now_s - last[model] if model in last else None
        last[model] = now_s
        account.arrive(model, now_s)
        account.wants(model, now_s, decide(model, now_s, gap))
    account.close()
    return Curve(name, settings, account.memory_s, account.cold / max(1, account.requests))


def spread(low: float, high: float, count: int) -> Iterator[float]:
    """Numbers from `low` to `high` with the same ratio from one to the next."""
    for step in range(count):
        yield low * (high / low) ** (step / (count - 1))
