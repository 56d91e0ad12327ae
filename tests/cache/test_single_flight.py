import asyncio

import pytest
from stagemesh.services.cache import single_flight
from stagemesh.services.cache.single_flight import ALONE, LANDED, SingleFlight

KEY = ("t", b"k")


def flights(**settings: float) -> SingleFlight:
    return SingleFlight(**{"ttl_s": 30.0, "max_flights": 10, "max_waiters": 10, **settings})  # type: ignore[arg-type]


async def waiting(flight: SingleFlight, count: int) -> list[asyncio.Task[bytes | None]]:
    tasks = []
    for _ in range(count):
        tasks.append(asyncio.create_task(flight.wait(KEY, 30.0)))
        await asyncio.sleep(0)
    assert flight.leases.waiting == count
    return tasks


async def test_one_computes_and_all_who_wait_are_told() -> None:
    flight = flights()
    assert flight.take(KEY)
    tasks = await waiting(flight, 5)
    flight.landed(KEY)
    assert await asyncio.gather(*tasks) == [LANDED] * 5
    assert flight.leases.stats.computed == 1
    assert flight.leases.stats.coalesced == 5
    assert flight.take(KEY)


async def test_a_lease_given_back_goes_to_the_first_who_waits() -> None:
    flight = flights()
    lease = flight.take(KEY)
    first, second = await waiting(flight, 2)
    flight.release(lease or b"")
    taken = await first
    assert taken not in (LANDED, ALONE, lease)
    assert not second.done()
    flight.release(taken or b"")
    assert await second not in (LANDED, ALONE, taken)


async def test_who_was_cancelled_does_not_keep_the_lease() -> None:
    flight = flights()
    lease = flight.take(KEY)
    first, second, third = await waiting(flight, 3)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    # Handed over and cancelled in one step of the loop: the lease goes on.
    flight.release(lease or b"")
    second.cancel()
    assert await third not in (LANDED, ALONE)
    assert (await asyncio.gather(second, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert flight.leases.waiting == 0


async def test_who_is_being_cancelled_is_passed_over() -> None:
    flight = flights()
    lease = flight.take(KEY)
    first, second = await waiting(flight, 2)
    first.cancel()  # it has not run since, and is still in the line
    flight.release(lease or b"")
    assert await second not in (LANDED, ALONE)
    assert flight.leases.stats.taken_over == 2


async def test_a_silent_computer_is_given_up_for_the_next() -> None:
    async with flights(ttl_s=0.05) as flight:
        lease = flight.take(KEY)
        (task,) = await waiting(flight, 1)
        taken = await asyncio.wait_for(task, 10)
        assert taken not in (LANDED, ALONE, lease)
        assert not flight.renew(lease or b"")


async def test_a_renewed_lease_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(single_flight.time, "monotonic", lambda: now)
    flight = flights(ttl_s=3.0)
    lease = flight.take(KEY) or b""
    for _ in range(10):
        now += 2.0
        assert flight.renew(lease)
        assert flight.leases.expire(now) == []
    now += 3.5
    assert not flight.renew(lease)


async def test_patience_and_places_are_bounded() -> None:
    flight = flights(max_waiters=1)
    flight.take(KEY)
    assert await flight.wait(KEY, 0.01) == ALONE
    assert flight.leases.stats.gave_up == 1
    await waiting(flight, 1)
    assert await flight.wait(KEY, 30.0) == ALONE
    assert await flight.wait(("t", b"nobody computes this"), 30.0) == ALONE


async def test_what_cannot_be_kept_is_computed_by_everybody() -> None:
    flight = flights()
    flight.take(KEY)
    tasks = await waiting(flight, 3)
    flight.dissolve(KEY)
    assert await asyncio.gather(*tasks) == [ALONE] * 3
