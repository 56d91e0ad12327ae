"""Real registry processes on a real etcd: the leader is killed between two assignments of a deployment, and the next one finishes it."""

import asyncio
from collections import Counter
from contextlib import aclosing

from test_registry_process import deploy

from stagemesh import records
from stagemesh.etcd import Change
from stagemesh.v1.registry_pb2 import Assignment

STAGES, REPLICAS = 6, 40


async def test_what_a_leader_killed_between_two_assignments_left_the_next_one_finishes(
    start_registry, start_node, until, etcd
) -> None:
    """With 240 assignments to write, SIGKILL comes as soon as the first is seen; each is written once, by one or the other."""
    for number in range(3):
        await start_node(f"n{number}", memory=10**12)
    first = await start_registry()
    await until(first.led)
    second = await start_registry()
    written: list[str] = []
    removed: list[str] = []
    following = asyncio.Event()

    async def follow() -> None:
        async with aclosing(etcd.watch(records.ASSIGNMENTS)) as changes:
            async for change in changes:
                following.set()
                if not isinstance(change, Change):
                    continue
                (removed if change.value is None else written).append(change.key)
                if len(written) == 1:
                    first.kill()

    watch = asyncio.create_task(follow())
    await following.wait()
    await second.stub.Deploy(deploy(stages=STAGES, replicas=REPLICAS))
    async with asyncio.timeout(20):
        await first.process.wait()
    left = len((await etcd.get_prefix(records.ASSIGNMENTS))[0])
    assert 1 <= left < STAGES * REPLICAS, "it died in the middle"
    assert not second.led()
    await until(second.led)
    await until(lambda: len(written) >= STAGES * REPLICAS)
    await asyncio.sleep(1.0)
    items, _ = await etcd.get_prefix(records.ASSIGNMENTS)
    held = Counter(records.from_json(item.value, Assignment).stage for item in items)
    assert held == dict.fromkeys(range(STAGES), REPLICAS)
    assert len(written) == len(set(written)) == STAGES * REPLICAS, "nothing was ever assigned twice"
    assert removed == []
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
