"""How near does the router's balance come to a policy that knows everything, over 1,000 replicas of unequal speed?

In virtual time (`balance_world`), with the router's own objects: `Loads` takes what comes back, the policies choose. Beside
them a policy that no router could have: it knows every replica's speed and all work that is left there, and joins the one
that would be done soonest with all it has and the new session. Every policy meets the same replicas and the same
sessions. What is compared is the 99th percentile of the time in the system: under batching a session does not wait and then
run, its steps queue with those of the others.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from stagemesh.services.router.loads import Loads  # type: ignore[import-not-found]
from stagemesh.services.router.policies import (  # type: ignore[import-not-found]
    LeastLoaded,
    P2cEwma,
    Policy,
    RoundRobin,
    Weighted,
)

from bench.balance_world import Choose, Server, Setting, World
from bench.options import Options, say
from bench.paired import paired_ratio
from bench.result import Bound, Result, Series
from stagemesh.v1.registry_pb2 import ReplicaRecord
from stagemesh.v1.stage_pb2 import ReplicaLoad

LEAST_WORK = "omniscient least work"
POLICIES: dict[str, Callable[[], Policy]] = {
    "p2c_ewma": P2cEwma,
    "p2c_ewma, 2 choices": lambda: P2cEwma(choices=2),
    "least_loaded": LeastLoaded,
    "weighted": Weighted,
    "round_robin": RoundRobin,
}
SEEDS, FEWER_SEEDS = 5, 3
WITHIN = 1.2


class Routers:
    """The routers of a world: each knows what it sent itself and what came back to it, and has a policy of its own."""

    def __init__(self, world: World, make: Callable[[], Policy]) -> None:
        noise = random.Random(0)
        self._records = [
            ReplicaRecord(replica_id=each.name, canary_ms=each.step_s * 1000 * noise.lognormvariate(0.0, 0.3))
            for each in world.servers
        ]
        self._index = {each.name: index for index, each in enumerate(world.servers)}
        self._loads = [Loads() for _ in range(world.setting.routers)]
        self._policies = [make() for _ in self._loads]

    def choose(self, now: float, steps: float, rng: random.Random, router: int) -> int:
        """As `Routing` does for one stage."""
        loads = self._loads[router]
        name = self._policies[router].choose(loads.candidates(self._records, whole=True), now, rng).replica_id
        loads.begin([name])
        return self._index[name]

    def told(self, router: int, server: Server, load: ReplicaLoad, at: float, ended: bool) -> None:
        """As `SessionRun` does with an event of a session."""
        loads = self._loads[router]
        loads.report([load], at)
        if ended:
            loads.succeeded([server.name], at)
            loads.end([server.name])


def least_work(world: World) -> Choose:
    """Knows when each replica would be done with all it has."""
    done_at = np.zeros(len(world.servers))
    step_s = np.array([each.step_s for each in world.servers])

    def choose(now: float, steps: float, rng: random.Random, router: int) -> int:
        then = np.maximum(done_at, now) + steps * step_s
        index = int(np.argmin(then))
        done_at[index] = then[index]
        return index

    return choose


def times_of(setting: Setting, seed: int, name: str) -> list[float]:
    """Seconds in the system of each session under the policy of that name."""
    world = World(setting, seed)
    if name == LEAST_WORK:
        return world.run(least_work(world), lambda *_: None)
    routers = Routers(world, POLICIES[name])
    return world.run(routers.choose, routers.told)


def p99(setting: Setting, seed: int, name: str) -> float:
    """The 99th percentile of the time in the system, in seconds."""
    return float(np.quantile(times_of(setting, seed, name), 0.99))


async def run(options: Options) -> Result:
    """All policies on the same worlds, a world for each seed."""
    return await asyncio.to_thread(_run, options)


def _run(options: Options) -> Result:
    base = Setting(replicas=50, warm=500, counted=500) if options.quick else Setting()
    main, fixed = "sessions of any length", "micro-batches of one size"
    several, busy = "sessions, by four routers", "sessions, 85 % utilised"
    groups = {
        main: base,
        fixed: replace(base, fixed=True),
        several: replace(base, routers=4),
        busy: replace(base, utilisation=0.85),
    }
    result = Result("balance", __doc__.splitlines()[0])
    found: dict[tuple[str, str], list[float]] = {}
    for group, setting in groups.items():
        names = [LEAST_WORK, *POLICIES] if group == main else [LEAST_WORK, "p2c_ewma"]
        for name in names:
            usual = SEEDS if group == main and name in (LEAST_WORK, "p2c_ewma") else FEWER_SEEDS
            values = [p99(setting, seed, name) for seed in range(1, options.times(usual) + 1)]
            found[group, name] = values
            say(f"{group}, {name}: p99 {np.median(values):.3f} s")
            result.series.append(Series(f"{group}: 99 % are done within", name, "s", values))

    def ratio(key: str, one: str, other: str, group: str = main, bound: Bound | None = None) -> None:
        ours, theirs = found[group, one], found[group, other]
        pairs = min(len(ours), len(theirs))
        result.ratio(key, paired_ratio(ours[:pairs], theirs[:pairs]), bound)

    within = Bound(WITHIN, at_most=True)
    ratio("p2c_vs_least_work_p99", "p2c_ewma", LEAST_WORK, bound=within)
    ratio("round_robin_vs_p2c_p99", "round_robin", "p2c_ewma")
    ratio("weighted_vs_p2c_p99", "weighted", "p2c_ewma")
    ratio("least_loaded_vs_p2c_p99", "least_loaded", "p2c_ewma")
    ratio("two_choices_vs_least_work_p99", "p2c_ewma, 2 choices", LEAST_WORK)
    ratio("p2c_vs_least_work_p99_fixed", "p2c_ewma", LEAST_WORK, fixed, within)
    ratio("p2c_vs_least_work_p99_routers", "p2c_ewma", LEAST_WORK, several)
    ratio("p2c_vs_least_work_p99_busy", "p2c_ewma", LEAST_WORK, busy)
    result.notes = [
        f"{base.replicas} replicas, the slowest {base.spread:g} times as slow as the fastest, {base.utilisation:.0%} utilised, "
        f"Poisson arrivals, sessions of {base.steps:g} steps in the mean (exponential), {SEEDS} or {FEWER_SEEDS} seeds;",
        f"what a router knows is {base.delay_s * 1000:g} ms old and comes with a session's end and once a second before; a reported pass is off by "
        f"{base.noise:.0%} and grows with its batch",
    ]
    return result
