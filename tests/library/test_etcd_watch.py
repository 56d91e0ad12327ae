"""A watch against real trouble: after each, the table that it feeds equals a fresh read."""

import asyncio
import random

from aetcd import rpc

from stagemesh import etcd_watch
from stagemesh.etcd import Etcd, Snapshot
from stagemesh.etcd_watch import prefix_end, watch_prefix
from tests.library.silent_proxy import SilentProxy


async def fresh(etcd: Etcd, prefix: str) -> dict[str, bytes]:
    return {item.key: item.value for item in (await etcd.get_prefix(prefix))[0]}


async def compact(etcd: Etcd, revision: int) -> None:
    await etcd._channel.kv("Compact", rpc.CompactionRequest(revision=revision, physical=True))


def test_prefix_end():
    assert prefix_end("/a/") == b"/a0"
    assert prefix_end("") == b"\0"


async def test_snapshot_then_changes(etcd, other, follow, eventually):
    await etcd.put("/w/a", b"1")
    table = follow(etcd, "/w/")
    await eventually(lambda: table.snapshots)
    assert table.snapshots[0].items == {"/w/a": b"1"}
    put = await other.put("/w/b", b"2")
    await other.put("/x", b"beside")
    await other.delete("/w/a")
    await eventually(lambda: table.items == {"/w/b": b"2"})
    assert [(change.key, change.value) for change in table.changes] == [("/w/b", b"2"), ("/w/a", None)]
    assert table.changes[0].revision == put
    assert len(table.snapshots) == 1


async def test_quiet_watch_stays_whole(etcd, other, follow, eventually, monkeypatch):
    monkeypatch.setattr(etcd_watch, "_CHECK_S", 0.05)
    await etcd.put("/w/a", b"1")
    table = follow(etcd, "/w/")
    await asyncio.sleep(0.5)
    for number in range(50):
        await other.put("/w/a", b"%d" % number)
        await asyncio.sleep(0.02)
    await eventually(lambda: table.items == {"/w/a": b"49"})
    assert len(table.snapshots) == 1, "a healthy watch was taken for a broken one"
    assert len(table.changes) == 50


async def test_etcd_killed_and_back(etcd, etcd_process, follow, eventually):
    await etcd.put("/w/a", b"1")
    table = follow(etcd, "/w/")
    await eventually(lambda: table.items)
    await etcd_process.stop()
    await asyncio.sleep(1)
    assert table.items == {"/w/a": b"1"}, "an absent etcd must not change what is known"
    assert len(table.snapshots) == 1
    await etcd_process.start()
    await etcd.put("/w/b", b"2")
    await eventually(lambda: table.items == {"/w/a": b"1", "/w/b": b"2"}, 5)


async def test_empty_etcd_is_reported_as_it_is(etcd, etcd_process, follow, eventually):
    for number in range(5):
        await etcd.put(f"/w/{number}", b"1")
    table = follow(etcd, "/w/")
    await eventually(lambda: len(table.items) == 5)
    await etcd_process.restart_empty()
    await eventually(lambda: len(table.snapshots) >= 2, 5)
    assert table.snapshots[-1].items == {}
    # The new store counts from 1 again: a watch resumed from the old revision would not see this.
    await etcd.put("/w/new", b"2")
    await eventually(lambda: table.items == {"/w/new": b"2"}, 5)


async def test_revision_compacted_before_the_stream_opens(etcd):
    for number in range(5):
        await etcd.put("/w/a", b"%d" % number)
    _, revision = await etcd.get_prefix("/w/")
    await compact(etcd, revision)
    reads = 0

    async def read():
        nonlocal reads
        reads += 1
        if reads == 1:
            return {"/w/a": b"0"}, 2  # what a slow reader holds: a revision that is gone by now
        return await fresh(etcd, "/w/"), revision

    events = watch_prefix(etcd._channel, "/w/", read)
    first = await anext(events)
    second = await asyncio.wait_for(anext(events), 5)
    await events.aclose()
    assert first == Snapshot({"/w/a": b"0"}, 2)
    assert second == Snapshot({"/w/a": b"4"}, revision)


async def test_connection_gone_silent(etcd_process, other, follow, eventually):
    proxy = SilentProxy(etcd_process.port)
    await proxy.start()
    etcd = Etcd(f"127.0.0.1:{proxy.port}")
    await etcd.start()
    table = follow(etcd, "/w/")
    await eventually(lambda: table.snapshots)
    await asyncio.sleep(0.2)
    proxy.go_silent()
    await other.put("/w/a", b"1")
    await eventually(lambda: table.items == {"/w/a": b"1"}, 5)
    assert proxy.accepted > 1
    await etcd.close()
    await proxy.stop()


async def test_stream_alive_but_not_delivering(etcd, other, follow, eventually, monkeypatch):
    """Changes that the stream swallows are found by the look at the store, for puts as for deletes."""
    real = etcd_watch._Stream._take
    lost = {"/w/lost", "/w/kept"}
    swallowed = []

    def take(stream, event):
        key = event.kv.key.decode()
        if key in lost:
            swallowed.append(key)
            lost.discard(key)
            return etcd_watch.Change("/w/other", b"", 0)
        return real(stream, event)

    await etcd.put("/w/kept", b"1")
    monkeypatch.setattr(etcd_watch, "_CHECK_S", 0.3)
    monkeypatch.setattr(etcd_watch._Stream, "_take", take)
    table = follow(etcd, "/w/")
    await eventually(lambda: table.snapshots)
    await other.put("/w/lost", b"2")
    await eventually(lambda: table.items.get("/w/lost") == b"2", 5)
    await asyncio.sleep(0.3)
    await other.delete("/w/kept")
    await eventually(lambda: "/w/kept" not in table.items, 5)
    assert swallowed == ["/w/lost", "/w/kept"]


async def test_frozen_etcd(etcd, etcd_process, other, follow, eventually):
    table = follow(etcd, "/w/")
    await eventually(lambda: table.snapshots)
    etcd_process.freeze()
    await asyncio.sleep(2)
    etcd_process.thaw()
    await other.put("/w/a", b"1")
    await eventually(lambda: table.items == {"/w/a": b"1"}, 5)


async def test_table_equals_a_fresh_read_whatever_happens(etcd, etcd_process, other, follow, eventually):
    rng = random.Random(7)
    table = follow(etcd, "/w/")
    await eventually(lambda: table.snapshots)
    for _ in range(12):
        for _ in range(rng.randrange(1, 25)):
            key = f"/w/{rng.randrange(12)}"
            if rng.random() < 0.35:
                await other.delete(key)
            else:
                await other.put(key, rng.randbytes(8))
        trouble = rng.choice(["none", "compact", "restart", "empty", "freeze"])
        if trouble == "compact":
            await compact(other, (await other.get_prefix("/w/"))[1])
        elif trouble == "restart":
            await etcd_process.restart()
        elif trouble == "empty":
            await etcd_process.restart_empty()
        elif trouble == "freeze":
            etcd_process.freeze()
            await asyncio.sleep(0.3)
            etcd_process.thaw()

        async def same() -> bool:
            return table.items == await fresh(other, "/w/")

        await eventually(same, 6)


async def test_watch_ends_with_its_client(etcd_process):
    etcd = Etcd(etcd_process.address)
    await etcd.start()
    events = etcd.watch("/w/")
    await anext(events)
    waiting = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0.2)
    await etcd.close()
    assert await asyncio.wait_for(waiting, 5) is None
