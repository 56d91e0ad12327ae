"""Three members on loopback: what a client sees when the leading one stands still, and when all start again."""

import asyncio
import signal

import pytest
from aetcd import rpc

from stagemesh.errors import ConfigError
from stagemesh.etcd import Change, Etcd
from stagemesh.local.etcd_cluster import EtcdCluster


async def leading(cluster):
    """The member that leads."""
    for member in cluster.members:
        etcd = Etcd(member.endpoint, timeout_s=2.0)
        await etcd.start()
        try:
            stub = rpc.MaintenanceStub(etcd._channel.current)
            status = await stub.Status(rpc.StatusRequest(), timeout=2.0)
        finally:
            await etcd.close()
        if status.leader == status.header.member_id:
            return member
    raise AssertionError("no member leads")


async def test_writes_watches_and_leases_outlive_a_leading_member_that_stands_still(tmp_path):
    """A machine that is gone answers nothing, not even that nobody listens."""
    cluster = EtcdCluster(tmp_path, members=3)
    await cluster.start()
    leader = await leading(cluster)
    # The client is at that one: it comes first in its list.
    others = [member.endpoint for member in cluster.members if member is not leader]
    etcd = Etcd(",".join([leader.endpoint, *others]), timeout_s=10.0)
    seen, process = [], leader.process

    async def follow():
        async for event in etcd.watch("/w/"):
            seen.append((event.key, event.value) if isinstance(event, Change) else dict(event.items))

    try:
        await etcd.start()
        lease = await etcd.lease(2)
        await lease.put("/leased", b"1")
        following = asyncio.create_task(follow())
        await etcd.put("/w/before", b"1")
        process.send_signal(signal.SIGSTOP)
        await etcd.put("/w/after", b"2")
        async with asyncio.timeout(15):
            while not any("/w/after" in each for each in seen):
                await asyncio.sleep(0.05)
        await asyncio.sleep(2.5)
        found = await etcd.get("/leased")
        assert found is not None, "the lease was kept"
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    finally:
        process.send_signal(signal.SIGCONT)
        await etcd.close()
        await cluster.stop()


async def test_all_of_them_start_again_with_their_data_and_know_one_another(tmp_path):
    first = EtcdCluster(tmp_path, members=3, peer_ports=(), durable=True)
    ports = [member._peer_port for member in first.members]
    await first.start()
    etcd = Etcd(first.endpoints)
    await etcd.start()
    await etcd.put("/k", b"kept")
    await etcd.close()
    await first.stop()
    again = EtcdCluster(tmp_path, members=3, peer_ports=ports, durable=True)
    await again.start()
    etcd = Etcd(again.endpoints)
    try:
        await etcd.start()
        found = await etcd.get("/k")
        assert found is not None
        assert found.value == b"kept"
    finally:
        await etcd.close()
        await again.stop()


def test_an_even_number_of_members_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ConfigError, match="1, 3 or 5 members, not 2: an even number survives no more"):
        EtcdCluster(tmp_path, members=2)
