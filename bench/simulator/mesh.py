"""A mesh in virtual time: an event loop around the production's own decisions."""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import numpy as np
from stagemesh.services.registry.board import Board  # type: ignore[import-not-found]
from stagemesh.services.registry.placement import choose_node, new_assignment  # type: ignore[import-not-found]
from stagemesh.services.registry.preload import Preloader  # type: ignore[import-not-found]
from stagemesh.services.registry.scaling.autoscaler import Autoscaler  # type: ignore[import-not-found]
from stagemesh.services.registry.scaling.limits import Defaults, limits_of  # type: ignore[import-not-found]
from stagemesh.services.registry.scaling.load import ModelLoad, StageLoad  # type: ignore[import-not-found]
from stagemesh.services.registry.world import History, World  # type: ignore[import-not-found]
from stagemesh.services.router.loads import Loads  # type: ignore[import-not-found]
from stagemesh.services.router.policies import P2cEwma  # type: ignore[import-not-found]

from bench.simulator.day import Arrival
from bench.simulator.fleet import DISK_GBPS, Model
from bench.simulator.stage import SLOTS, Pace, Replica, Tally, pace, prompt, replica
from stagemesh.v1.registry_pb2 import REPLICA_STATE_READY, NodeRecord, ReplicaRecord
from stagemesh.v1.stage_pb2 import ReplicaLoad

_SMOOTHED = 0.8
"""Weight of the last tick, as `Reports` has it for five seconds."""


@dataclass(frozen=True)
class Setting:
    """Seconds. `tick_s` is how often is decided; `deadline_s` how long a request waits to begin; `queue` how many may, for each model."""

    tick_s: float = 5.0
    deadline_s: float = 120.0
    queue: int = 10_000
    idle_s: float = 300.0
    runtime_s: float = 2.0
    preload: bool = True
    seed: int = 1


@dataclass
class Served:
    """What came of the requests, and what it took."""

    arrived: int = 0
    served: int = 0
    refused: int = 0
    unfinished: int = 0
    cold: int = 0
    first_token_s: list[float] = field(default_factory=list)
    queued_s: list[float] = field(default_factory=list)
    decisions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    placed: int = 0
    removed: int = 0
    without_room: int = 0
    node_s: float = 0.0
    replica_s: float = 0.0
    computed_s: float = 0.0
    most_replicas: int = 0
    most_nodes: int = 0


class _State:
    """A model: its replicas by stage, those that wait, and what its stages did."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name: str = model.spec.name
        self.wanted: tuple[int, ...] = (0,) * model.stages
        self.replicas: list[list[Replica]] = [[] for _ in self.wanted]
        self.ready: list[list[Replica]] = [[] for _ in self.wanted]
        self.records: list[list[ReplicaRecord]] = [[] for _ in self.wanted]
        self.by_id: dict[str, Replica] = {}
        self.tallies = [Tally() for _ in self.wanted]
        self.waiting: deque[tuple[Arrival, bool]] = deque()
        self.active = 0
        self.requested_at = float("-inf")

    def refresh(self, stage: int) -> None:
        """Who serves has changed."""
        self.ready[stage] = [each for each in self.replicas[stage] if each.ready and not each.leaving]
        self.records[stage] = [each.record for each in self.ready[stage]]


class Mesh:
    """`run` plays arrivals, in order of time, to their end. What is decided depends on nothing but the arguments."""

    def __init__(
        self, nodes: dict[str, NodeRecord], models: Sequence[Model], setting: Setting | None = None
    ) -> None:
        self.setting = setting or Setting()
        self.served = Served()
        self.states = [_State(each) for each in models]
        self._by_name = {each.name: each for each in self.states}
        self._nodes = nodes
        self._board = Board(World({each.spec.name: each.spec for each in models}, nodes, {}, {}))
        self._history = History()
        self._ids = Random(self.setting.seed)
        self._choices = Random(self.setting.seed + 1)
        self._autoscaler = Autoscaler()
        self._preloader = Preloader(self.setting.idle_s) if self.setting.preload else None
        self._loads, self._policy = Loads(), P2cEwma()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self._defaults = Defaults(idle_s=self.setting.idle_s)
        self._limits = {each.spec.name: limits_of(each.spec.scaling, self._defaults) for each in models}
        self._used: Counter[str] = Counter()
        self.now = 0.0

    def run(
        self, arrivals: Sequence[Arrival], until_s: float, tell: Callable[[Served, float], None] | None = None
    ) -> Served:
        """Play all arrivals and what follows, until that time; what runs then still is counted as unfinished.

        `tell` is called each hour of virtual time with what came of the requests so far, and the time in seconds.
        """
        if tell is not None:
            for hour in range(1, int(until_s // 3600) + 1):
                self._after(3600.0 * hour, tell, self.served, 3600.0 * hour)
        self._after(self.setting.tick_s, self._tick)
        for arrival in arrivals:
            self._play(arrival[0])
            self.now = arrival[0]
            self._arrive(arrival)
        self._play(until_s)
        self.served.unfinished = sum(each.active + len(each.waiting) for each in self.states)
        return self.served

    def _play(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, call, arguments = heapq.heappop(self._events)
            call(*arguments)

    def _after(self, seconds: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), call, arguments))

    def _arrive(self, arrival: Arrival) -> None:
        state = self.states[arrival[1]]
        self.served.arrived += 1
        state.requested_at = self.now
        if self._preloader is not None:
            self._preloader.observe(state.name, self.now)
        cold = not all(state.ready)
        self.served.cold += cold
        if not any(state.wanted):
            # As the router does: it wakes the model, and holds the request.
            self._want(state, (1,) * state.model.stages, "scale.wake", "a router woke it for a request")
        if len(state.waiting) >= self.setting.queue:
            self.served.refused += 1
        else:
            state.waiting.append((arrival, cold))
            self._begin_waiting(state)

    def _begin_waiting(self, state: _State) -> None:
        while state.waiting:
            arrival, _ = state.waiting[0]
            if self.now - arrival[0] > self.setting.deadline_s:
                state.waiting.popleft()
                self.served.refused += 1
                continue
            route = self._route(state)
            if route is None:
                return
            state.waiting.popleft()
            self._begin(state, arrival, route)

    def _route(self, state: _State) -> list[Replica] | None:
        """A replica of each stage by the router's policy, or None while one has no room."""
        if not all(state.ready):
            return None
        route = []
        for ready, records in zip(state.ready, state.records, strict=True):
            chosen = ready[0]
            if len(ready) > 1:
                candidates = self._loads.candidates(records, whole=True)
                name = self._policy.choose(candidates, self.now, self._choices).replica_id
                chosen = state.by_id[name]
                if chosen.active >= SLOTS:
                    chosen = min(ready, key=lambda each: each.active)
            if chosen.active >= SLOTS:
                return None
            route.append(chosen)
        return route

    def _begin(self, state: _State, arrival: Arrival, route: list[Replica]) -> None:
        names = [each.record.replica_id for each in route]
        self._loads.begin(names)
        state.active += 1
        for each in route:
            each.active += 1
        at, waited = prompt(route, arrival[2], self.now, state.tallies)
        self.served.first_token_s.append(at - arrival[0])
        self.served.queued_s.append(self.now - arrival[0] + waited)
        found = pace(route)
        for tally, share in zip(state.tallies, found.shares, strict=True):
            tally.decoding += share
            tally.steps += arrival[3]
            self.served.computed_s += share * arrival[3] * found.token_s
        state.tallies[found.slowest].waited_s += found.waits_s * arrival[3]
        self._after(at - self.now + arrival[3] * found.token_s, self._end, state, route, names, found)

    def _end(self, state: _State, route: list[Replica], names: list[str], found: Pace) -> None:
        self.served.served += 1
        state.active -= 1
        state.requested_at = self.now
        for each, tally, share, took in zip(route, state.tallies, found.shares, found.passes_s, strict=True):
            tally.decoding -= share
            load = ReplicaLoad(
                replica_id=each.record.replica_id, sessions=each.active, queue_depth=1, step_ms=took * 1000
            )
            self._loads.report([load], self.now)
            each.active -= 1
            if each.leaving and not each.active:
                self._free(state, each)
        self._loads.succeeded(names, self.now)
        self._loads.end(names)
        self._begin_waiting(state)

    def _tick(self) -> None:
        self._after(self.setting.tick_s, self._tick)
        wanted = self._preloader.wanted(self.now) if self._preloader is not None else {}
        # One that sleeps without a reason to wake has nothing to be decided, and nothing to be remembered.
        looked_at = [each for each in self.states if any(each.wanted) or each.waiting or each.name in wanted]
        for decision in self._autoscaler.decide([self._load(each, wanted) for each in looked_at], self.now):
            if decision.replicas != decision.expected:
                state = self._by_name[decision.model]
                self._want(state, decision.replicas, decision.kind, decision.reason)
            else:
                self.served.decisions[decision.kind] += 1
        for state in self.states:
            if any(state.wanted) or any(state.replicas):
                self._begin_waiting(state)
                self._settle(state)
        replicas = len(self._board.held)
        self.served.replica_s += self.setting.tick_s * replicas
        self.served.node_s += self.setting.tick_s * len(self._used)
        self.served.most_replicas = max(self.served.most_replicas, replicas)
        self.served.most_nodes = max(self.served.most_nodes, len(self._used))

    def _load(self, state: _State, wanted: dict[str, str]) -> ModelLoad:
        """As `Reports.load` says it of what nodes and routers told."""
        stages = []
        for ready, tally in zip(state.ready, state.tallies, strict=True):
            queue_ms = 1000 * tally.waited_s / tally.steps if tally.steps else 0.0
            tally.queue_ms += _SMOOTHED * (queue_ms - tally.queue_ms)
            serving = max(1, len(ready))
            busy = min(1.0, (tally.decoding + tally.prompts_s / self.setting.tick_s) / serving)
            kv = sum(each.active for each in ready) / (serving * SLOTS)
            stages.append(StageLoad(len(ready), tally.queue_ms, busy, kv))
            self.served.computed_s += tally.prompts_s
            tally.steps = tally.waited_s = tally.prompts_s = 0.0
        idle_s = None if self._preloader is None else self._preloader.keep_alive_s(state.name, self.now)
        return ModelLoad(
            state.name,
            self._limits[state.name],
            state.wanted,
            stages,
            active=state.active,
            waiting=len(state.waiting),
            requested_at=state.requested_at,
            awake_because=wanted.get(state.name, ""),
            idle_s=idle_s,
        )

    def _want(self, state: _State, replicas: Sequence[int], kind: str, reason: str) -> None:
        self.served.decisions[kind] += 1
        self.served.reasons[f"{kind}: {_kind_of(reason)}"] += 1
        state.wanted = tuple(replicas)
        self._settle(state)

    def _settle(self, state: _State) -> None:
        """Give the model the replicas that it is to have, as `assign.decide` does."""
        for stage, wanted in enumerate(state.wanted):
            have = [each for each in state.replicas[stage] if not each.leaving]
            for _ in range(wanted - len(have)):
                if not self._place(state, stage):
                    self.served.without_room += 1
                    break
            if len(have) > wanted:
                have.sort(key=lambda each: (each.ready, each.active))
                for each in have[: len(have) - wanted]:
                    each.leaving = True
                    if not each.active:
                        self._free(state, each)
                state.refresh(stage)

    def _place(self, state: _State, stage: int) -> bool:
        spec = state.model.spec
        node = choose_node(self._board, self._history, spec, stage)
        if node is None:
            return False
        assignment = new_assignment(spec, stage, node, self._ids)
        self._board.assign(assignment, "")
        self._board.decisions.clear()
        self._used[node.node_id] += 1
        record = ReplicaRecord(
            replica_id=assignment.replica_id,
            model=spec.name,
            revision=spec.revision,
            stage=stage,
            stages=len(spec.partitions),
            partition=spec.partitions[stage],
            node_id=node.node_id,
            address=node.address,
            zone=node.zone,
            state=REPLICA_STATE_READY,
        )
        made = replica(record, node, state.model.gigabytes[stage])
        state.replicas[stage].append(made)
        state.by_id[record.replica_id] = made
        self.served.placed += 1
        load_s = self.setting.runtime_s + state.model.gigabytes[stage] / DISK_GBPS
        self._after(load_s, self._loaded, state, made)
        return True

    def _loaded(self, state: _State, made: Replica) -> None:
        if made.leaving:
            return
        made.ready = True
        state.refresh(made.stage)
        self._begin_waiting(state)

    def _free(self, state: _State, gone: Replica) -> None:
        name = gone.record.replica_id
        if name not in state.by_id:
            return
        del state.by_id[name]
        state.replicas[gone.stage].remove(gone)
        held = self._board.held[name]
        self._board.unassign(held, "")
        self._board.decisions.clear()
        self._used[held.node_id] -= 1
        if not self._used[held.node_id]:
            del self._used[held.node_id]
        self.served.removed += 1


def _kind_of(reason: str) -> str:
    """A reason without its numbers, so that equal ones are counted together."""
    return " ".join("#" if any(char.isdigit() for char in word) else word for word in reason.split())[:110]


def quantile(values: Sequence[float], part: float) -> float:
    """Of seconds; 0 when there are none."""
    return float(np.quantile(values, part)) if values else 0.0
