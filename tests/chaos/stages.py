"""F1, F2, F3, F6 and F12: replicas that die, freeze, cannot be reached, are slow or answer with errors."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from stagemesh.local.processes import ChildProcess

from .mesh import ChaosMesh, Replica
from .proxy import FROM_TARGET, TO_TARGET
from .scenario import Run, quantile, scenario

DETECTED_S = 3.0
# A slow process runs for this part of every period.
PERIOD_S, SLOW_SHARE = 0.1, 0.1


@scenario("F1", "SIGKILL of any replica, the head included")
async def kill_a_replica(run: Run) -> None:
    victim = await run.replica()
    before = await rebuilt(run)
    async with run.streams(rounds=1) as streams:
        await streams.reach(run.share(0.05, 0.8))
        hit = {victim.stage: streams.at(victim.replica_id)}
        run.kill(victim)
    await only_rebuilt(run, before, hit)
    run.within("p99 stall", quantile(run.outcome.stalls_s, 0.99), 1.0 + run.calm.prefill_s)
    await run.whole()


@scenario("F2", "SIGSTOP of a replica, later SIGCONT")
async def freeze_a_replica(run: Run) -> None:
    victim = await run.replica()
    before = await rebuilt(run)
    async with run.streams() as streams:
        await streams.reach(run.share(0.05, 0.8))
        hit = {victim.stage: streams.at(victim.replica_id)}
        run.signal(victim.process, signal.SIGSTOP, str(victim))
        frozen = time.monotonic()
        run.within(
            "last session was routed to it", await last_routed(run, victim, 3 * DETECTED_S), DETECTED_S
        )
        await streams.round()
        run.say("every stream that it held up has ended", f"after {time.monotonic() - frozen:.1f} s")
        await only_rebuilt(run, before, hit)
        run.signal(victim.process, signal.SIGCONT, str(victim))
        await asyncio.sleep(0.5)
        await streams.round()
    run.within("longest stall", max(run.outcome.stalls_s), DETECTED_S + 1.0 + run.calm.prefill_s)
    fenced = await run.mesh.total("stagemesh_stage_fenced_steps_total", run.mesh.stage_processes)
    run.say(
        "steps of an older epoch that were fenced", "no such metric" if fenced is None else f"{fenced:.0f}"
    )
    await run.whole()


@scenario("F3", "one-way packet loss between two stages", needs=ChaosMesh.proxy_of, in_ci=False)
async def cut_one_way(run: Run) -> None:
    victim = await run.replica(needs=ChaosMesh.proxy_of)
    proxy = run.mesh.proxy_of(victim)
    assert proxy is not None
    sender = await run.replica((victim.stage - 1) % run.mesh.stages)
    way = run.rng.choice([TO_TARGET, FROM_TARGET])
    arrow = "->" if way == TO_TARGET else "<-"
    async with run.streams() as streams:
        await streams.reach(run.share(0.05, 0.8))
        run.strike()
        open_ = proxy.cut(way, sender.process.pid)
        cut = time.monotonic()
        run.say(f"{sender} {arrow} {victim}: nothing arrives any more", f"{open_} open connections")
        run.holds("there was a connection to cut", open_ > 0)
        await streams.round()
        run.say("every stream that it held up has ended", f"after {time.monotonic() - cut:.1f} s")
        proxy.heal()
        run.say("healed: what was held back arrives late")
        await asyncio.sleep(0.5)
        await streams.round()
    run.within("longest stall", max(run.outcome.stalls_s), DETECTED_S + run.calm.prefill_s)
    run.untested(
        "loss of single packets (no netem here): a proxy holds one direction of a connection back instead"
    )
    await run.whole()


@scenario("F6", "a replica ten times slower than its peers", in_ci=False)
async def slow_replica(run: Run) -> None:
    victim = await run.replica()
    async with run.streams() as streams:
        await streams.reach(0.5)
        async with slowed(victim.process):
            run.say(f"{victim} runs a tenth of the time")
            await asyncio.sleep(10.0)
            run.at_most("its share of new sessions after 10 s", await share_of(run, victim, 5.0), 0.05)
        run.say(f"{victim} runs as before")
        await rejoins(run, victim)
    await run.whole()


@scenario("F6", "a replica that refuses 5 % of its sessions", in_ci=False, needs=ChaosMesh.can_err)
async def erring_replica(run: Run) -> None:
    victim = await run.replica(needs=ChaosMesh.can_err)
    # Short answers: of few sessions nobody can tell a twentieth.
    async with run.streams(tokens=8):
        await asyncio.sleep(1.0)
        run.signal(victim.process, signal.SIGUSR1, f"{victim}: it refuses one session in twenty")
        await asyncio.sleep(10.0)
        run.at_most("its share of new sessions after 10 s", await share_of(run, victim, 5.0), 0.05)
        run.signal(victim.process, signal.SIGUSR2, f"{victim}: it is well again")
        # One that erred again and again stays away for longer each time.
        await rejoins(run, victim, within_s=90.0)
    await run.whole()


@scenario("F12", "two faults at once, in different stages")
async def two_faults(run: Run) -> None:
    first, second = run.rng.sample(range(run.mesh.stages), 2)
    victims = [await run.replica(first), await run.replica(second)]
    before = await rebuilt(run)
    deeds = [run.rng.choice([signal.SIGKILL, signal.SIGSTOP]) for _ in victims]
    async with run.streams() as streams:
        await streams.reach(run.share(0.05, 0.8))
        hit = {victim.stage: streams.at(victim.replica_id) for victim in victims}
        for victim, deed in zip(victims, deeds, strict=True):
            run.signal(victim.process, deed, str(victim))
        await streams.round()
        await only_rebuilt(run, before, hit)
    run.within("longest stall", max(run.outcome.stalls_s), DETECTED_S + 1.0 + run.calm.prefill_s)
    run.release()
    await run.whole()


async def rebuilt(run: Run) -> dict[tuple[int, int], float]:
    """Positions computed to take the place of lost replicas, by process id and stage."""
    found: dict[tuple[int, int], float] = {}
    for process in run.mesh.stage_processes:
        for (name, labels), value in (await run.mesh.metrics(process)).items():
            if name == "stagemesh_stage_rebuilt_tokens_total":
                place = process.pid, int(labels.split('stage="')[1].split('"')[0])
                # A node may have replicas of several models.
                found[place] = found.get(place, 0.0) + value
    return found


async def only_rebuilt(run: Run, before: dict[tuple[int, int], float], hit: dict[int, int]) -> None:
    """Promise that the lost stages were computed again, and no other.

    `hit` has a lost stage's streams that had tokens when its replica was lost; those that had none begin anew.
    """
    stages = [0.0] * run.mesh.stages
    for (pid, stage), value in (await rebuilt(run)).items():
        stages[stage] += value - before.get((pid, stage), 0.0)
    run.say("positions computed again, by stage", ", ".join(f"{count:.0f}" for count in stages))
    for stage, streams in sorted(hit.items()):
        if streams:
            run.at_least("positions rebuilt at a lost stage", stages[stage], 1)
        else:
            run.say(f"nothing to rebuild at stage {stage}", "no stream there had a token yet")
    others = sum(count for stage, count in enumerate(stages) if stage not in hit)
    run.at_most("positions rebuilt at stages that were not lost", others, 0)


async def last_routed(run: Run, victim: Replica, during_s: float) -> float:
    """Seconds until the last session that went to the replica, of those that began in `during_s`."""
    began = time.monotonic()
    last, count = 0.0, await run.routed([victim.replica_id])
    while (now := time.monotonic() - began) < during_s:
        if (seen := await run.routed([victim.replica_id])) != count:
            last, count = now, seen
        await asyncio.sleep(0.1)
    return last


async def share_of(run: Run, victim: Replica, during_s: float, least: int = 40) -> float:
    """The replica's part of the sessions that its stage is given from now on, of at least that many."""
    hosted = await run.mesh.hosted(run.client)
    peers = [
        each.replica_id
        for each in hosted
        if each.stage == victim.stage and each.replica_id != victim.replica_id
    ]
    before = await run.routed([victim.replica_id]), await run.routed(peers)
    began = time.monotonic()
    while True:
        await asyncio.sleep(0.5)
        own, others = await run.routed([victim.replica_id]) - before[0], await run.routed(peers) - before[1]
        passed = time.monotonic() - began
        if passed >= during_s and (own + others >= least or passed > 6 * during_s):
            run.say(
                f"sessions that stage {victim.stage} was given",
                f"{own:.0f} of {own + others:.0f} to {victim}",
            )
            return own / (own + others) if own + others else 0.0


async def rejoins(run: Run, victim: Replica, within_s: float = 30.0) -> None:
    """Promise that the replica gets a fair part again."""
    began = time.monotonic()
    share = 0.0
    while share < 0.1 and time.monotonic() - began < within_s * run.patience:
        share = await share_of(run, victim, 2.0)
    run.at_least("its share when it is well", share, 0.1)
    run.within("until it had that share", time.monotonic() - began, within_s)


@asynccontextmanager
async def slowed(process: ChildProcess) -> AsyncIterator[None]:
    """The process is stopped for most of each period, and runs on afterwards."""

    async def stutter() -> None:
        try:
            while True:
                os.kill(process.pid, signal.SIGSTOP)
                await asyncio.sleep(PERIOD_S * (1 - SLOW_SHARE))
                os.kill(process.pid, signal.SIGCONT)
                await asyncio.sleep(PERIOD_S * SLOW_SHARE)
        finally:
            os.kill(process.pid, signal.SIGCONT)

    task = asyncio.create_task(stutter())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
