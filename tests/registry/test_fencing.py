"""Whoever led once and does not know that it is over cannot write; the next leader finishes what was begun."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from in_process import MIB, InProcess, node_of, put_world, spec_of
from stagemesh.services.registry.leadership import Fenced, Leadership

from stagemesh import records
from stagemesh.etcd import Change, Etcd, Put
from stagemesh.v1.registry_pb2 import Assignment, DeployRequest

DEMO = str(Path(__file__).parents[2] / "examples" / "demo_model" / "model")


async def assignments(etcd: Etcd) -> list[Assignment]:
    items, _ = await etcd.get_prefix(records.ASSIGNMENTS)
    return [records.from_json(item.value, Assignment) for item in items]


class Written:
    """Every assignment that was ever written, in order."""

    def __init__(self, etcd: Etcd) -> None:
        self.keys: list[str] = []
        self.task = asyncio.create_task(self._follow(etcd))

    async def _follow(self, etcd: Etcd) -> None:
        async for event in etcd.watch(records.ASSIGNMENTS):
            if isinstance(event, Change) and event.value is not None:
                self.keys.append(event.key)


async def expire(leadership: Leadership) -> None:
    """End its lease as etcd would, behind its back."""
    other = leadership._etcd
    lease, leadership._lease = leadership._lease, None
    assert lease is not None
    await lease.revoke()
    assert other is not None


async def test_a_former_leaders_write_is_refused_even_while_it_believes_to_lead(etcd, etcd_server) -> None:
    other = Etcd(etcd_server.endpoint)
    await other.start()
    old, new = Leadership(etcd, "old", 5), Leadership(other, "new", 5)
    assert await old.refresh()
    assert not await new.refresh()
    term = old.term
    assert await old.commit([Put("/k", b"1")])
    await expire(old)
    assert await new.refresh()
    assert new.term > term
    assert old.leads, "its clock says so still"
    with pytest.raises(Fenced):
        await old.commit([Put("/k", b"2")])
    assert not old.leads
    assert (await etcd.get("/k")).value == b"1"

    # Leading again does not make what was decided in the earlier term right.
    await new.resign()
    assert await old.refresh()
    assert old.term > term
    with pytest.raises(Fenced):
        await old.commit([Put("/k", b"3")], term=term)
    assert await old.refresh()
    assert await old.commit([Put("/k", b"4")])
    assert (await etcd.get("/k")).value == b"4"
    await other.close()


async def test_a_leader_that_stood_still_between_plan_and_write_assigns_nothing(
    etcd, etcd_server, until
) -> None:
    """The old one is held before its third write; the new one takes over and finishes; then the old one goes on."""
    await put_world(etcd, *(node_of(f"n{n}") for n in range(3)))
    written = Written(etcd)
    old = await InProcess(etcd_server.endpoint, "old", ttl_s=60).start()
    await until(lambda: old.leadership.leads)
    held, go_on, count = asyncio.Event(), asyncio.Event(), 0

    async def hold() -> None:
        nonlocal count
        count += 1
        if count == 3:
            held.set()
            await go_on.wait()

    await until(lambda: old.mirror.mark is not None)
    old.before_write = hold
    await put_world(etcd, spec_of("m", 6, 1))
    async with asyncio.timeout(20):
        await held.wait()
    await expire(old.leadership)
    new = await InProcess(etcd_server.endpoint, "new").start()
    await until(lambda: len(written.keys) == 6)
    go_on.set()
    await until(lambda: not old.leadership.leads)
    await asyncio.sleep(0.3)
    assert Counter(each.stage for each in await assignments(etcd)) == dict.fromkeys(range(6), 1)
    assert len(written.keys) == 6, "nothing was ever assigned twice"
    await new.die()
    await old.die()
    written.task.cancel()


async def test_a_new_leader_whose_watch_lags_behind_waits_for_what_was_assigned_before(
    etcd, etcd_server, until
) -> None:
    await put_world(etcd, *(node_of(f"n{n}") for n in range(3)))
    written = Written(etcd)
    old = await InProcess(etcd_server.endpoint, "old").start()
    await until(lambda: old.leadership.leads)
    new = await InProcess(etcd_server.endpoint, "new").start()
    await put_world(etcd, spec_of("m", 6, 2))
    await until(lambda: "m" in new.mirror.world().models)
    new.sees.clear()
    await until(lambda: len(written.keys) == 12)
    await put_world(etcd, spec_of("more", 2, 1))
    await until(lambda: len(written.keys) == 14)
    await old.die()
    await until(lambda: new.leadership.leads)
    await asyncio.sleep(0.3)
    new.sees.set()
    await put_world(etcd, spec_of("last", 2, 1))
    await until(lambda: len(written.keys) >= 16)
    await asyncio.sleep(0.2)
    assert len(written.keys) == 16, "nothing was ever assigned twice"
    await new.die()
    written.task.cancel()


async def test_whoever_dies_in_the_middle_of_a_deployment_the_next_one_finishes_it(
    etcd, etcd_server, until
) -> None:
    """Ten deployments of 12 stages x 2 replicas, each through leaders that die after a random number of writes."""
    rng = Random(7)
    await put_world(etcd, *(node_of(f"n{n}", 10_000 * MIB) for n in range(5)))
    written = Written(etcd)
    for deployment in range(10):
        name = f"m{deployment}"
        writes_left = rng.choice([0, 1, rng.randrange(24), rng.randrange(24)])
        died = asyncio.Event()

        async def die(died: asyncio.Event = died) -> None:
            nonlocal writes_left
            if writes_left == 0:
                died.set()
                await asyncio.Event().wait()
            writes_left -= 1

        first = await InProcess(etcd_server.endpoint, f"a{deployment}", seed=2 * deployment).start()
        second = await InProcess(etcd_server.endpoint, f"b{deployment}", seed=2 * deployment + 1).start()
        await until(lambda: first.leadership.leads or second.leadership.leads)  # noqa: B023
        leader, other = (first, second) if first.leadership.leads else (second, first)
        leader.before_write = die
        await put_world(etcd, spec_of(name, 12, 2))
        async with asyncio.timeout(20):
            await died.wait()
        await leader.die()
        await until(lambda: len(written.keys) == 24 * (deployment + 1))  # noqa: B023
        await other.die()
    held = Counter((each.model, each.stage) for each in await assignments(etcd))
    assert held == {(f"m{d}", stage): 2 for d in range(10) for stage in range(12)}
    assert len(written.keys) == 10 * 24, "nothing was ever assigned twice"
    written.task.cancel()


async def test_a_stopped_leader_that_wakes_up_after_another_took_over_does_no_harm(
    start_registry, start_node, until, etcd
) -> None:
    """Real processes: SIGSTOP, another leads and deploys, SIGCONT; then SIGKILL of the second, and the first leads again."""
    nodes = [await start_node(f"n{number}") for number in range(3)]
    written = Written(etcd)
    first = await start_registry()
    await until(first.led)
    second = await start_registry()
    await first.stub.Deploy(DeployRequest(source=DEMO, name="one", stages=2, replicas=1))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 2)
    os.kill(first.process.pid, signal.SIGSTOP)
    await until(second.led)
    await second.stub.Deploy(DeployRequest(source=DEMO, name="two", stages=3, replicas=2))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 8)
    os.kill(first.process.pid, signal.SIGCONT)
    await until(lambda: "registry.leader lost" in first.log.read_text())
    second.kill()
    await second.process.wait()
    await until(lambda: first.log.read_text().count("registry.leader gained") == 2)
    await first.stub.Deploy(DeployRequest(source=DEMO, name="three", stages=2, replicas=1))
    await until(lambda: sum(len(node.assigned) for node in nodes) == 10)
    await asyncio.sleep(1.5)
    held = Counter((each.model, each.stage) for each in await assignments(etcd))
    assert held == {
        ("one", 0): 1, ("one", 1): 1, ("two", 0): 2, ("two", 1): 2, ("two", 2): 2, ("three", 0): 1, ("three", 1): 1,
    }  # fmt: skip
    assert len(written.keys) == 10
    written.task.cancel()


async def test_a_leader_that_resigns_is_followed_at_once(etcd, etcd_server, until) -> None:
    """With a lease of a minute nobody could wait for it."""
    first = await InProcess(etcd_server.endpoint, "a", ttl_s=60).start()
    await until(lambda: first.leadership.leads)
    second = await InProcess(etcd_server.endpoint, "b", ttl_s=60).start()
    await second.mirror.synced.wait()
    await first.leadership.resign()
    for task in first.tasks:
        task.cancel()
    await until(lambda: second.leadership.leads)
    await first.die()
    await second.die()
