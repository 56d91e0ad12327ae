import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.admission import Admission
from stagemesh.services.router.admission_gate import AdmissionGate

from stagemesh.errors import DeadlineExceeded, ResourceExhausted, Unavailable


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.sampled_from(["arrive", "leave", "abandon"]), max_size=60),
)
def test_bounds_order_and_no_place_lost(max_active, max_waiting, moves):
    admission, running, queue = Admission(max_active=max_active, max_waiting=max_waiting), 0, []
    for ticket, move in enumerate(moves):
        if move == "arrive":
            if running == max_active and len(queue) == max_waiting:
                with pytest.raises(ResourceExhausted) as caught:
                    admission.arrive(ticket)
                assert 0.1 <= caught.value.retry_after_s <= 30
            elif admission.arrive(ticket):
                running += 1
            else:
                assert running == max_active
                queue.append(ticket)
        elif move == "leave" and running:
            successor = admission.leave(0.5)
            assert successor == (queue.pop(0) if queue else None)
            running -= successor is None
        elif move == "abandon" and queue:
            admission.abandon(queue.pop())
        assert (admission.active, admission.waiting) == (running, len(queue))


def gate(max_active, max_waiting):
    return AdmissionGate(Admission(max_active=max_active, max_waiting=max_waiting))


async def test_never_more_than_allowed_and_everybody_gets_a_turn():
    door, running, most, done = gate(3, 100), 0, 0, 0

    async def one():
        nonlocal running, most, done
        async with door.admitted(time.monotonic() + 30):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            done += 1

    await asyncio.gather(*(one() for _ in range(50)))
    assert (most, done) == (3, 50)
    assert (door.admission.active, door.admission.waiting) == (0, 0)


async def test_a_full_queue_refuses_and_a_deadline_ends_the_wait():
    door = gate(1, 1)
    async with door.admitted(time.monotonic() + 30):
        waiter = asyncio.create_task(door.admitted(time.monotonic() + 0.05).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted):
            await door.admitted(time.monotonic() + 30).__aenter__()
        with pytest.raises(DeadlineExceeded):
            await waiter
        assert door.admission.waiting == 0
    assert door.admission.active == 0


async def test_a_cancelled_waiter_loses_no_place():
    door = gate(1, 10)
    async with door.admitted(time.monotonic() + 30):
        places = [door.admitted(time.monotonic() + 30) for _ in range(3)]
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


async def test_drained_waits_for_what_runs_and_admits_nobody():
    door = gate(2, 2)
    async with door.admitted(time.monotonic() + 30):
        drained = asyncio.create_task(door.drained())
        await asyncio.sleep(0.01)
        assert not drained.done()
        with pytest.raises(Unavailable, match="shutting down"):
            await door.admitted(time.monotonic() + 30).__aenter__()
    await asyncio.wait_for(drained, 5)
