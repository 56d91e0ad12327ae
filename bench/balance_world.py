"""A stage of many replicas in virtual time, and the one whose policy knows everything. Pure.

A replica works as a stage does under iteration-level batching: a pass gives each of its sessions one step and takes as
long as its rows do, so that sessions share it. All that a router learns comes as it really does: its own sessions,
and loads that arrive with answers, some milliseconds after they were true.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from stagemesh.v1.stage_pb2 import ReplicaLoad

EWMA = 0.2
"""Of a stage's moving average of a pass."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated. Times in seconds; a `step_s` is that of the fastest replica."""

    replicas: int = 1000
    spread: float = 8.0
    utilisation: float = 0.75
    steps: float = 50.0
    step_s: float = 0.01
    noise: float = 0.3
    delay_s: float = 0.005
    period_s: float = 1.0
    routers: int = 1
    fixed: bool = False
    warm: int = 20000
    counted: int = 10000


@dataclass(slots=True)
class Server:
    """A replica. `attained` is how many steps each session there would have had since the beginning."""

    name: str
    step_s: float
    attained: float = 0.0
    at: float = 0.0
    average_ms: float = 0.0
    version: int = 0
    running: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, now: float) -> None:
        """Let its sessions have what they had until now."""
        if self.running:
            self.attained += (now - self.at) / (self.step_s * len(self.running))
        self.at = now

    def done_at(self) -> float:
        """When the next session ends, if none comes."""
        return self.at + (self.running[0][0] - self.attained) * self.step_s * len(self.running)


Choose = Callable[[float, float, random.Random, int], int]
"""Now, the session's steps, a generator, which router: to the index of a server."""


class World:
    """Replicas of unequal speed, and sessions that arrive at random; the same for every policy at one seed."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        speeds = random.Random(seed)
        self.servers = [
            Server(f"r{index}", setting.step_s * math.exp(speeds.uniform(0.0, math.log(setting.spread))))
            for index in range(setting.replicas)
        ]
        for server in self.servers:
            server.average_ms = server.step_s * 1000
        capacity = sum(1 / server.step_s for server in self.servers)
        self._rate = setting.utilisation * capacity / setting.steps
        self._arrivals = random.Random(seed + 1)
        self._choices = random.Random(seed + 2)
        self._noise = random.Random(seed + 3)

    def run(
        self, choose: Choose, told: Callable[[int, Server, ReplicaLoad, float, bool], None]
    ) -> list[float]:
        """Seconds in the system of each counted session.

        `told` gets what reaches a router, in order: the router's number, the server, its load, when, and whether a session of that
        router has ended there. Besides, a session tells its router the load of its replica every `period_s`.
        """
        setting, servers = self.setting, self.servers
        ends: list[tuple[float, int, int]] = []
        told_at: list[tuple[float, int, int, int, ReplicaLoad, bool]] = []
        periods = [(self._noise.random() * setting.period_s, index) for index in range(len(servers))]
        heapq.heapify(periods)
        began: list[tuple[float, int]] = []
        times: list[float] = []
        total, order = setting.warm + setting.counted, 0
        now = self._arrivals.expovariate(self._rate)
        while len(began) < total or ends:
            if ends and (ends[0][0] <= now or len(began) == total):
                at, index, version = heapq.heappop(ends)
                server = servers[index]
                if version != server.version:
                    continue
                server.advance(at)
                _, session = heapq.heappop(server.running)
                self._schedule(index, ends)
                if session >= setting.warm:
                    times.append(at - began[session][0])
                order += 1
                load = self._load(server, 1)
                heapq.heappush(told_at, (at + setting.delay_s, order, began[session][1], index, load, True))
                continue
            while periods[0][0] <= now:
                at, index = heapq.heapreplace(periods, (periods[0][0] + setting.period_s, periods[0][1]))
                if not (running := servers[index].running):
                    continue
                load = self._load(servers[index])
                for router in {began[session][1] for _, session in running}:
                    order += 1
                    heapq.heappush(told_at, (at + setting.delay_s, order, router, index, load, False))
            steps = setting.steps if setting.fixed else self._arrivals.expovariate(1 / setting.steps)
            while told_at and told_at[0][0] <= now:
                at, _, router, index, load, ended = heapq.heappop(told_at)
                told(router, servers[index], load, at, ended)
            session = len(began)
            router = session % setting.routers
            index = choose(now, steps, self._choices, router)
            server = servers[index]
            server.advance(now)
            heapq.heappush(server.running, (server.attained + steps, session))
            self._schedule(index, ends)
            began.append((now, router))
            now += self._arrivals.expovariate(self._rate)
        return times

    def _schedule(self, index: int, ends: list[tuple[float, int, int]]) -> None:
        server = self.servers[index]
        server.version += 1
        if server.running:
            heapq.heappush(ends, (server.done_at(), index, server.version))

    def _load(self, server: Server, ending: int = 0) -> ReplicaLoad:
        """What it tells; a session that ends with the pass is counted still."""
        batch = len(server.running) + ending
        pass_ms = server.step_s * 1000 * batch * self._noise.lognormvariate(0.0, self.setting.noise)
        server.average_ms += EWMA * (pass_ms - server.average_ms)
        return ReplicaLoad(replica_id=server.name, sessions=batch, queue_depth=1, step_ms=server.average_ms)
