"""A lease keeps its keys through every trouble that etcd can have."""

import asyncio

import pytest
from aetcd import rpc

from stagemesh import etcd_lease
from stagemesh.announce import announce
from stagemesh.errors import FailedPrecondition, InvalidArgument, Unavailable
from stagemesh.etcd import Etcd
from stagemesh.v1.registry_pb2 import ServiceRecord


async def revoke_behind_its_back(etcd: Etcd, lease_id: int) -> None:
    await etcd._channel.call(
        lambda channel, timeout: rpc.LeaseStub(channel).LeaseRevoke(
            rpc.LeaseRevokeRequest(ID=lease_id), timeout=timeout
        )
    )


async def keys(etcd: Etcd) -> dict[str, bytes]:
    return {item.key: item.value for item in (await etcd.get_prefix("/l/"))[0]}


async def test_keys_outlive_the_ttl_and_go_with_the_lease(etcd, other):
    lease = await etcd.lease(1)
    await lease.put("/l/a", b"1")
    await etcd.put("/l/b", b"2", lease=lease)
    await asyncio.sleep(2.5)
    assert await keys(other) == {"/l/a": b"1", "/l/b": b"2"}
    await lease.delete("/l/a")
    assert await keys(other) == {"/l/b": b"2"}
    await lease.revoke()
    assert await keys(other) == {}
    await lease.revoke()
    with pytest.raises(Unavailable):
        await lease.put("/l/a", b"1")


async def test_keys_of_a_dead_process_go(etcd_process, other, eventually):
    etcd = Etcd(etcd_process.address)
    await etcd.start()
    lease = await etcd.lease(1)
    await lease.put("/l/a", b"1")
    lease._task.cancel()  # as far as etcd can see, the process is gone

    async def gone() -> bool:
        return await keys(other) == {}

    await eventually(gone, 10)
    await etcd.close()


async def test_revoked_lease_is_replaced_with_its_keys(etcd, other, eventually):
    lease = await etcd.lease(2)
    await lease.put("/l/a", b"1")
    await lease.put("/l/b", b"2")
    old = lease.id
    await revoke_behind_its_back(other, old)
    assert await keys(other) == {}

    async def back() -> bool:
        return await keys(other) == {"/l/a": b"1", "/l/b": b"2"}

    await eventually(back, 3)
    assert lease.id != old
    await lease.revoke()
    assert await keys(other) == {}


async def test_put_on_a_lost_lease_replaces_it_at_once(etcd, other):
    lease = await etcd.lease(60)
    await lease.put("/l/a", b"1")
    await revoke_behind_its_back(other, lease.id)
    await lease.put("/l/b", b"2")
    assert await keys(other) == {"/l/a": b"1", "/l/b": b"2"}


@pytest.mark.parametrize("empty", [False, True], ids=["same data", "empty"])
async def test_etcd_away_for_longer_than_the_ttl(etcd, etcd_process, other, eventually, monkeypatch, empty):
    monkeypatch.setattr(etcd_lease, "_WRITE_TIMEOUT_S", 0.2)
    lease = await etcd.lease(1)
    await lease.put("/l/kept", b"1")
    await lease.put("/l/removed", b"1")
    await etcd_process.stop()
    await asyncio.sleep(2)
    # Writes of the meantime are not lost, and do not fail.
    await lease.put("/l/kept", b"2")
    await lease.put("/l/new", b"3")
    await lease.delete("/l/removed")
    await (etcd_process.restart_empty() if empty else etcd_process.start())
    await other.get("/l/kept")  # etcd serves again from here

    async def back() -> bool:
        return await keys(other) == {"/l/kept": b"2", "/l/new": b"3"}

    await eventually(back, 2)
    await asyncio.sleep(2.5)
    assert await back(), "the keys hang on a lease that is refreshed"
    await lease.revoke()
    assert await keys(other) == {}


async def test_frozen_etcd_longer_than_the_ttl(etcd, etcd_process, other, eventually):
    lease = await etcd.lease(1)
    await lease.put("/l/a", b"1")
    etcd_process.freeze()
    await asyncio.sleep(2)
    etcd_process.thaw()

    async def back() -> bool:
        return await keys(other) == {"/l/a": b"1"}

    await eventually(back, 3)
    await asyncio.sleep(2)
    assert await back()


async def test_key_removed_by_hand_comes_back(etcd, other, eventually):
    lease = await etcd.lease(1)
    await lease.put("/l/a", b"1")
    await other.delete("/l/a")

    async def back() -> bool:
        return await keys(other) == {"/l/a": b"1"}

    await eventually(back, 3)


async def test_key_taken_over_by_another_lease_stays_there(etcd, other):
    first, second = await etcd.lease(1), await other.lease(60)
    await first.put("/l/a", b"old process")
    await second.put("/l/a", b"new process")
    await asyncio.sleep(1)
    assert await keys(other) == {"/l/a": b"new process"}
    await first.revoke()
    assert await keys(other) == {"/l/a": b"new process"}


async def test_a_claim_is_not_made_again_when_its_lease_was_lost(etcd, other, eventually):
    lease = await etcd.lease(1)
    await lease.put("/l/mine", b"1")
    assert await etcd.compare_and_put("/l/leader", b"me", expected_mod_revision=0, lease=lease)
    old = lease.id
    await revoke_behind_its_back(other, old)
    await eventually(lambda: lease.id != old, 3)
    await asyncio.sleep(0.5)
    assert await keys(other) == {"/l/mine": b"1"}


async def test_claim_under_a_lost_lease(etcd, other):
    lease = await etcd.lease(60)
    await revoke_behind_its_back(other, lease.id)
    with pytest.raises(FailedPrecondition):
        await etcd.compare_and_put("/l/leader", b"me", expected_mod_revision=0, lease=lease)


async def test_last_value_wins_when_puts_overlap(etcd, other):
    lease = await etcd.lease(60)
    await asyncio.gather(*(lease.put("/l/a", b"%d" % number) for number in range(30)))
    assert await keys(other) == {"/l/a": b"29"}


async def test_put_that_meets_a_revoke_leaves_nothing(etcd, other):
    lease = await etcd.lease(60)
    await lease.put("/l/a", b"1")
    await asyncio.gather(
        *(lease.put("/l/a", b"%d" % n) for n in range(5)), lease.revoke(), lease.delete("/l/b")
    )
    await asyncio.sleep(0.2)
    assert await keys(other) == {}


async def test_close_revokes(etcd_process, other):
    etcd = Etcd(etcd_process.address)
    await etcd.start()
    await (await etcd.lease(60)).put("/l/a", b"1")
    await etcd.close()
    assert await keys(other) == {}


async def test_announce(etcd, other):
    key = "/stagemesh/v1/services/cache/c1"
    async with announce(etcd, ServiceRecord(kind="cache", id="c1", address="h:1")) as lease:
        found = await other.get(key)
        assert b'"h:1"' in found.value
        assert lease.ttl_s == 5
    assert await other.get(key) is None
    with pytest.raises(InvalidArgument):
        async with announce(etcd, ServiceRecord(kind="cache", id="a/b")):
            pass
