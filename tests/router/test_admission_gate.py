import asyncio
import time

import pytest
from stagemesh.services.router.admission.gate import AdmissionGate
from stagemesh.services.router.admission.priority import Priority
from stagemesh.services.router.admission.queue import Admission

from stagemesh.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable


def gate(max_active, max_waiting):
    return AdmissionGate(Admission(max_active=max_active, max_waiting=max_waiting))


def soon(seconds=30.0):
    return time.monotonic() + seconds


async def test_never_more_than_allowed_and_everybody_gets_a_turn():
    door, running, most, done = gate(3, 100), 0, 0, 0

    async def one():
        nonlocal running, most, done
        async with door.admitted(soon()) as place:
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            place.progress(1)
            running -= 1
            done += 1

    await asyncio.gather(*(one() for _ in range(50)))
    assert (most, done) == (3, 50)
    assert (door.admission.active, door.admission.waiting) == (0, 0)


async def test_a_gate_where_nothing_runs_is_drained_at_once():
    door = gate(1, 1)
    await asyncio.wait_for(door.drained(), 5)
    with pytest.raises(Unavailable):
        await door.admitted(soon()).__aenter__()


async def test_what_a_request_has_done_in_the_end_counts_as_it_leaves():
    door = gate(1, 1)
    throughput = door.admission.lane("").throughput
    used = [throughput.used]
    for done in (1, 4):
        async with door.admitted(soon(), size=4) as place:
            place.done = done
        used.append(throughput.used)
    assert used[0] == 1 > used[2] > used[1]


async def test_a_full_queue_refuses_and_a_deadline_ends_the_wait():
    door = gate(1, 1)
    async with door.admitted(soon()):
        waiter = asyncio.create_task(door.admitted(soon(0.05)).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted):
            await door.admitted(soon()).__aenter__()
        with pytest.raises(DeadlineExceeded):
            await waiter
        assert door.admission.waiting == 0
    assert door.admission.active == 0
    with pytest.raises(DeadlineExceeded):
        await door.admitted(time.monotonic()).__aenter__()


async def test_one_that_is_pushed_out_hears_of_it_at_once():
    door = gate(1, 1)
    async with door.admitted(soon()):
        low = asyncio.create_task(door.admitted(soon(), priority=Priority.LOW).__aenter__())
        await asyncio.sleep(0)
        place = door.admitted(soon(), priority=Priority.HIGH)
        high = asyncio.create_task(place.__aenter__())
        with pytest.raises(ResourceExhausted, match="priority high took its place") as caught:
            await asyncio.wait_for(low, 5)
        assert caught.value.retry_after_s
    await asyncio.wait_for(high, 5)
    assert place.waited_s >= 0
    await place.__aexit__(None, None, None)
    assert (door.admission.active, door.admission.waiting) == (0, 0)


async def test_a_cancelled_waiter_loses_no_place():
    door = gate(1, 10)
    async with door.admitted(soon()):
        places = [door.admitted(soon()) for _ in range(3)]
        waiters = [asyncio.create_task(place.__aenter__()) for place in places]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
    # The place went to the second one; cancelled in the same moment it passes the place on.
    waiters[1].cancel()
    await asyncio.wait(waiters, timeout=5)
    assert waiters[1].cancelled()
    assert not waiters[2].cancelled()
    assert (door.admission.active, door.admission.waiting) == (1, 0)
    await places[2].__aexit__(None, None, None)
    assert door.admission.active == 0


async def test_one_that_is_cancelled_before_it_is_told_of_its_place_passes_it_on():
    door = gate(1, 10)
    first = door.admitted(soon())
    await first.__aenter__()
    places = [door.admitted(soon()) for _ in range(2)]
    waiters = [asyncio.create_task(place.__aenter__()) for place in places]
    await asyncio.sleep(0)
    waiters[0].cancel()  # it has not run yet when the place becomes free
    await first.__aexit__(None, None, None)
    await asyncio.wait_for(waiters[1], 5)
    await asyncio.gather(waiters[0], return_exceptions=True)
    assert waiters[0].cancelled()
    assert (door.admission.active, door.admission.waiting) == (1, 0)


async def test_only_what_a_stage_has_no_memory_for_makes_it_seem_full():
    door = gate(100, 10)

    async def fail(error):
        async with door.admitted(soon(), model="m"), door.admitted(soon(), model="m"):
            raise error

    for error in (
        InvalidArgument("x: no", field="x"),
        ResourceExhausted("messages: too many", field="messages"),
        RuntimeError(),
    ):
        with pytest.raises(type(error)):
            await fail(error)
        assert door.admission.lane("m").ceiling == 100
    with pytest.raises(ResourceExhausted):
        await fail(ResourceExhausted("KV memory"))
    assert door.admission.lane("m").ceiling < 100


async def test_drained_waits_for_what_runs_and_admits_nobody():
    door = gate(2, 2)
    async with door.admitted(soon()):
        drained = asyncio.create_task(door.drained())
        await asyncio.sleep(0.01)
        assert not drained.done()
        with pytest.raises(Unavailable, match="shutting down"):
            await door.admitted(soon()).__aenter__()
    await asyncio.wait_for(drained, 5)


async def test_drained_waits_for_those_that_wait():
    door = gate(1, 2)
    place, other = door.admitted(soon()), door.admitted(soon())
    await place.__aenter__()
    waiter = asyncio.create_task(other.__aenter__())
    await asyncio.sleep(0)
    drained = asyncio.create_task(door.drained())
    await place.__aexit__(None, None, None)
    await asyncio.wait_for(waiter, 5)
    assert not drained.done()
    await other.__aexit__(None, None, None)
    await asyncio.wait_for(drained, 5)
