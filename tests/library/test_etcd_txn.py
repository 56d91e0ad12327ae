"""Transactions with several comparisons, against a real etcd."""

import pytest

from stagemesh.etcd import Delete, Guard, Put


async def test_all_writes_happen_when_every_guard_holds_and_none_otherwise(etcd) -> None:
    await etcd.put("/g", b"mine")
    await etcd.put("/old", b"x")
    held = await etcd.get("/g")
    fence = Guard("/g", value=b"mine", create_revision=held.create_revision)
    revision = await etcd.transact([fence, Guard("/a", create_revision=0)], [Put("/a", b"1"), Delete("/old")])
    assert revision == (await etcd.get("/a")).mod_revision
    assert await etcd.get("/old") is None

    for guards in (
        [fence, Guard("/a", create_revision=0)],
        [Guard("/g", value=b"another's", create_revision=held.create_revision)],
        [Guard("/g", value=b"mine", create_revision=held.create_revision + 1)],
        [fence, Guard("/a", mod_revision=revision - 1)],
        [fence, Guard("/nobody", value=b"")],
    ):
        assert await etcd.transact(guards, [Put("/a", b"2"), Put("/b", b"2")]) == 0, guards
    assert (await etcd.get("/a")).value == b"1"
    assert await etcd.get("/b") is None

    # The guarded key written anew with the same value is not the one that was guarded.
    await etcd.delete("/g")
    await etcd.put("/g", b"mine")
    assert await etcd.transact([fence], [Put("/a", b"3")]) == 0


async def test_an_answer_that_was_lost_counts_as_done_only_if_it_was(etcd, monkeypatch) -> None:
    """The second attempt of a write that had arrived finds its guard broken by the first one."""
    counted = etcd._channel.kv_counted

    async def twice(method, request, timeout_s=None):
        await counted(method, request, timeout_s)
        reply, _ = await counted(method, request, timeout_s)
        return reply, 2

    monkeypatch.setattr(etcd._channel, "kv_counted", twice)
    absent = Guard("/k", create_revision=0)
    assert await etcd.transact([absent], [Put("/k", b"1")])
    assert await etcd.transact([absent], [Put("/k", b"2")]) == 0
    assert await etcd.transact([Guard("/k", value=b"1")], [Delete("/k")])
    assert await etcd.transact([Guard("/none", value=b"1")], [Put("/none", b"2")]) == 0


async def test_a_transaction_that_writes_or_compares_nothing_is_a_fault_of_the_caller(etcd) -> None:
    with pytest.raises(ValueError, match="writes"):
        await etcd.transact([], [])
    with pytest.raises(ValueError, match="compares nothing"):
        await etcd.transact([Guard("/k")], [Delete("/k")])
