"""What does it save to send prompts where their beginnings are held, and what does it cost in queues?

A recorded trace whose prompts share beginnings is played twice. In virtual time (`prefix_world`) over eight replicas, with the
routers' own objects (`Loads`, `Prefixes`, the policies) and the stages' own block table; beside them a single cache without
limit, and one with the room of all replicas. And, shortened and slowed down, to a real mesh (`prefix_mesh`).
"""

import asyncio
import random
from dataclasses import dataclass

import numpy as np
from stagemesh.services.router.loads import Loads  # type: ignore[import-not-found]
from stagemesh.services.router.policies import POLICIES, Ask  # type: ignore[import-not-found]
from stagemesh.services.router.prefixes import Prefixes, Reuse  # type: ignore[import-not-found]
from stagemesh.services.stage.partition.blocks import Blocks  # type: ignore[import-not-found]

from bench import prefix_mesh
from bench.options import Options, say
from bench.paired import paired_ratio
from bench.prefix_trace import BLOCK_TOKENS, Recorded, read
from bench.prefix_world import UNIT, Job, Setting, Told, World, full_names, usable
from bench.result import Bound, Result, Series
from stagemesh.v1.registry_pb2 import ReplicaRecord
from stagemesh.v1.stage_pb2 import PrefixReport, ReplicaLoad

AFFINITY, USUAL, TURNS = "prefix_affinity", "p2c_ewma", "round_robin"
NAMES = (AFFINITY, USUAL, TURNS)
ROUNDS = 3
QUICK = 600
MORE_ROOM = 4
"""Times as much room, in the second group."""


class Routers(Told):
    """The routers of a world, with a policy each; those that go by prefixes hear of them."""

    def __init__(self, world: World, policy: str, seed: int) -> None:
        routers = range(world.setting.routers)
        self._by_prefix = policy == AFFINITY
        self._records = [ReplicaRecord(replica_id=each.name) for each in world.replicas]
        self._names = [each.name for each in world.replicas]
        self._loads = [Loads() for _ in routers]
        self._prefixes = [Prefixes() for _ in routers]
        self._policies = [POLICIES[policy]() for _ in routers]
        self._rng = random.Random(seed)
        # Tokens of each prompt that is not through, by the identity of its request.
        self._sent: dict[int, int] = {}

    def choose(self, asked: Recorded, names: list[bytes], now: float, router: int) -> int:
        """As `Routing` and `Attempts` do for one stage."""
        loads, units = self._loads[router], -(-asked.prompt // UNIT)
        held = {}
        if self._by_prefix:
            reuse = Reuse(self._prefixes[router], [self._names], names[: usable(asked)], units + 1)
            held = dict(reuse.at(0))
        ask = Ask(token_ids=range(units), new_tokens=asked.answer, held=held)
        candidates = loads.candidates(self._records, whole=True)
        name = self._policies[router].choose(candidates, now, self._rng, ask).replica_id
        loads.begin([name])
        tokens = max(1, units - held.get(name, 0) * BLOCK_TOKENS // UNIT)
        loads.sent([name], tokens)
        self._sent[id(asked)] = tokens
        return self._names.index(name)

    def first(self, router: int, replica: str, asked: Recorded) -> None:
        """See `Told`."""
        self._loads[router].through([replica], self._sent.pop(id(asked)))

    def load(self, router: int, load: ReplicaLoad, now: float) -> None:
        """See `Told`."""
        self._loads[router].report([load], now)

    def report(self, report: PrefixReport, now: float) -> None:
        """See `Told`."""
        if self._by_prefix:
            for prefixes in self._prefixes:
                assert prefixes.take(report.load.replica_id, report), "nothing is lost on the way here"

    def over(self, router: int, replica: str, now: float) -> None:
        """See `Told`."""
        self._loads[router].end([replica])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trace: the share of prompt tokens that was not computed, and seconds of each request."""

    saved: float
    waits: np.ndarray
    firsts: np.ndarray


def play(trace: list[Recorded], setting: Setting, policy: str, seed: int) -> Outcome:
    """A trace under one policy."""
    world = World(setting)
    routers = Routers(world, policy, seed)
    jobs: list[Job] = world.play(trace, routers.choose, routers)
    return Outcome(
        sum(job.reused for job in jobs) / sum(job.asked.prompt for job in jobs),
        np.array([job.began - job.asked.at for job in jobs]),
        np.array([job.first - job.asked.at for job in jobs]),
    )


def single_cache(trace: list[Recorded], room: int | None) -> float:
    """The share that one cache would have saved that has all blocks at once, of `room` tokens or without limit."""
    full = sum(len(each.full) for each in trace)
    blocks = Blocks(full if room is None else room // BLOCK_TOKENS)
    saved = 0
    for asked in trace:
        names = full_names(asked)
        known = blocks.known(names[: usable(asked)])
        saved += known * BLOCK_TOKENS
        taken = blocks.take(len(names), names[:known])
        for block, name in zip(taken or (), names, strict=False):
            blocks.name(block, name)
        blocks.release(taken or [])
    return saved / sum(each.prompt for each in trace)


async def run(options: Options) -> Result:
    """Virtual time first, then the real mesh."""
    result = Result("prefix", __doc__.splitlines()[0])
    try:
        trace = read(options.trace, QUICK if options.quick else 0)
    except FileNotFoundError as absent:
        for key in ("saved_vs_p2c", "saved_vs_one_cache", "first_token_p99_vs_p2c", *prefix_mesh.KEYS):
            result.not_measured[key] = str(absent)
        return result
    await asyncio.to_thread(_virtual, result, trace, options)
    await prefix_mesh.measure(result, trace, options)
    return result


def _virtual(result: Result, trace: list[Recorded], options: Options) -> None:
    base = Setting()
    for group, setting, main in (
        (f"{base.room:,} tokens of KV each", base, True),
        (f"{MORE_ROOM * base.room:,} tokens of KV each", Setting(room=MORE_ROOM * base.room), False),
    ):
        found: dict[str, list[Outcome]] = {name: [] for name in NAMES}
        for seed in range(options.times(ROUNDS if main else 1)):
            for name in NAMES:
                outcome = play(trace, setting, name, seed)
                found[name].append(outcome)
                say(
                    f"{group}, {name}: {outcome.saved:.1%} saved, wait p50 {np.quantile(outcome.waits, 0.5):.2f} s "
                    f"p99 {np.quantile(outcome.waits, 0.99):.2f} s, first token p99 {np.quantile(outcome.firsts, 0.99):.2f} s"
                )
        one = single_cache(trace, setting.room * setting.replicas)
        _series(result, group, found, one, single_cache(trace, None))
        suffix = "" if main else "_more_room"

        def ratio(key: str, ours: list[float], theirs: list[float], bound: Bound | None = None) -> None:
            result.ratio(key + suffix, paired_ratio(ours, theirs), bound)  # noqa: B023

        saved = {name: [each.saved for each in found[name]] for name in NAMES}
        ratio("saved_vs_p2c", saved[AFFINITY], saved[USUAL], Bound(1.5) if main else None)
        ratio("saved_vs_one_cache", saved[AFFINITY], [one] * len(saved[AFFINITY]))
        for key, share, which in (
            ("wait_p50", 0.5, "waits"),
            ("wait_p99", 0.99, "waits"),
            ("first_token_p50", 0.5, "firsts"),
            ("first_token_p99", 0.99, "firsts"),
        ):
            bound = Bound(1.0, at_most=True) if main and key == "first_token_p99" else None
            ours, theirs = (_quantiles(found[name], which, share) for name in (AFFINITY, USUAL))
            if min(theirs) > 0:
                ratio(f"{key}_vs_p2c", ours, theirs, bound)
    result.notes.append(
        f"{len(trace):,} requests in {trace[-1].at:.0f} s, {sum(each.prompt for each in trace) / 1e6:.1f} million prompt tokens; "
        f"{base.replicas} replicas, {base.token_s * 1e6:g} us for a token of a prompt, {base.pass_s * 1000:g} ms and "
        f"{base.row_s * 1000:g} ms for each session for a pass; {base.routers} routers, told every {base.period_s:g} s;"
    )
    result.notes.append(
        "a single cache has every block as soon as its prompt has come, and nobody waits for it: no mesh can reach it"
    )


def _series(
    result: Result, group: str, found: dict[str, list[Outcome]], one: float, unlimited: float
) -> None:
    saved = f"{group}: prompt tokens not computed"
    result.series.append(Series(saved, "one cache, no limit", "%", [100 * unlimited]))
    result.series.append(Series(saved, "one cache, all their room", "%", [100 * one]))
    for name, outcomes in found.items():
        result.series.append(Series(saved, name, "%", [100 * each.saved for each in outcomes]))
    for which, says in (("waits", "wait until computed"), ("firsts", "first token")):
        for share, word in ((0.5, "p50"), (0.99, "p99")):
            for name, outcomes in found.items():
                values = _quantiles(outcomes, which, share)
                result.series.append(Series(f"{group}: {says}, {word}", name, "s", values))


def _quantiles(outcomes: list[Outcome], which: str, share: float) -> list[float]:
    return [float(np.quantile(getattr(each, which), share)) for each in outcomes]
