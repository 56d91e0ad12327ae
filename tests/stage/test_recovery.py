"""A lost replica is replaced inside a running session: only its own part is computed again, and no token changes."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from stagemesh.services.stage import recovery
from stagemesh.services.stage.passes import Work
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.checkpoint import inspect
from stagemesh.errors import FailedPrecondition, NotFound, Unavailable
from stagemesh.grpc_errors import FAILED_REPLICA
from stagemesh.v1.stage_pb2 import OpenSession, Sampling, SessionEvent
from tests.parity import causal
from tests.stage.meshed import Mesh, Run, freed, mesh_of

CUTS = [0, 3, 5, 8]
PROMPT = list(range(5, 45))
NEW = 24
SAMPLED = Sampling(temperature=0.9, seed=7, frequency_penalty=1.1, repetition_penalty=1.2)
ROUTE = ["0a", "1a", "2a"]


def computed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows that each replica computes from now on."""
    rows = dict.fromkeys(mesh.members, 0)
    for name, member in mesh.members.items():
        start = member.replica._start

        def counted(work: Work, *, name: str = name, start: Any = start, **more: Any) -> None:
            rows[name] += sum(segment.rows for segment in work.batch.segments)
            start(work, **more)

        monkeypatch.setattr(member.replica, "_start", counted)
    return rows


async def whole(mesh: Mesh, sampling: Sampling, new: int = NEW) -> list[int]:
    run = Run(mesh, list(ROUTE), PROMPT, new, session=99, settings={"sampling": sampling})
    return await run.go()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
async def test_only_the_lost_partition_is_computed_again(
    llama: Path, stage: int, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        expected = await whole(mesh, sampling)
        rows = computed(mesh, monkeypatch)
        run = Run(
            mesh, list(ROUTE), PROMPT, NEW, spares={stage: [f"{stage}b"]}, settings={"sampling": sampling}
        )
        assert await run.go({10: mesh.members[f"{stage}a"].die}) == expected
        assert [(lost.stage, lost.replica_id) for lost in run.lost] == [(stage, f"{stage}a")]
        prefix = len(PROMPT) // 16 * 16  # kept from the first run
        for name in set(ROUTE) - {f"{stage}a"}:
            assert 0 <= rows[name] - (len(PROMPT) - prefix + NEW - 1) <= 1, (
                name
            )  # the step under way, once more
        assert rows[f"{stage}b"] >= NEW - 10
        await freed(mesh, "0a", "1b", "2b")


async def test_a_lost_head_is_built_from_the_tokens_and_the_others_keep_what_they_have(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        expected = await whole(mesh, SAMPLED)
        run = Run(mesh, list(ROUTE), PROMPT, NEW, settings={"sampling": SAMPLED})
        with pytest.raises(Exception, match=r"."):
            await run.go({10: mesh.members["0a"].die})
        assert len(run.tokens) < NEW
        rows = computed(mesh, monkeypatch)
        run.route[0], run.epoch, run.held = "0b", 1, True
        had = len(run.tokens)
        assert await run.go() == expected
        assert rows["0b"] >= len(PROMPT) + had - 1
        assert max(rows["1a"], rows["2a"]) <= NEW - had + 1
        await freed(mesh, "0b", "1a", "2a", "1b")


async def test_two_neighbours_one_after_the_other_and_then_the_first_again(llama: Path) -> None:
    async with mesh_of(llama, CUTS, "abc") as mesh:
        expected = await whole(mesh, Sampling())
        run = Run(mesh, list(ROUTE), PROMPT, NEW, spares={1: ["1b", "1c"], 2: ["2b"]})

        async def both() -> None:
            await mesh.members["1a"].die()
            await mesh.members["2a"].die()

        assert await run.go({4: both, 12: mesh.members["1b"].die}) == expected
        assert [lost.stage for lost in run.lost] == [1, 2, 1]
        await freed(mesh, "0a", "1c", "2b")


async def test_a_replacement_that_never_had_the_session_or_forgot_it_is_built_again(llama: Path) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        expected = await whole(mesh, Sampling())
        run = Run(mesh, list(ROUTE), PROMPT, NEW, spares={1: ["1b"], 2: ["2a"]})

        async def lose_one_and_forget_another() -> None:
            await mesh.members["1a"].die()
            replica = mesh.members["2a"].replica
            for session in list(replica.sessions.values()):
                replica.end_session(session)

        assert await run.go({10: lose_one_and_forget_another}) == expected
        assert [(lost.stage, lost.replica_id) for lost in run.lost] == [(1, "1a"), (2, "2a")]
        await freed(mesh, "0a", "1b", "2a")


async def test_a_prompt_in_chunks_goes_on_where_it_was(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [3 + i % 200 for i in range(400)]
    async with mesh_of(llama, CUTS, chunk_tokens=16) as mesh:
        expected = await Run(mesh, ["0b", "1b", "2b"], prompt, 6, session=8).go()
        rows = computed(mesh, monkeypatch)
        dies = mesh.members["1a"]
        start, passes = dies.replica._start, []
        deaths: list[asyncio.Task[None]] = []

        def dies_in_the_middle(work: Work, **more: Any) -> None:
            passes.append(work)
            if len(passes) == 12:
                deaths.append(asyncio.create_task(dies.die()))
            start(work, **more)

        monkeypatch.setattr(dies.replica, "_start", dies_in_the_middle)
        run = Run(mesh, list(ROUTE), prompt, 6, spares={1: ["1b"]})
        assert await run.go() == expected
        assert [lost.stage for lost in run.lost] == [1]
        assert rows["2a"] < len(prompt) + 6 + 200  # what was through was not computed again
        assert rows["1b"] >= len(prompt)
        await asyncio.gather(*deaths)
        await freed(mesh, "0a", "1b", "2a")


async def test_without_a_journal_the_session_ends_and_says_why(llama: Path) -> None:
    async with mesh_of(llama, CUTS, journal_bytes=10_000) as mesh:
        run = Run(mesh, list(ROUTE), PROMPT, NEW, spares={1: ["1b"]})
        with pytest.raises(FailedPrecondition, match="not kept any more"):
            await run.go({10: mesh.members["1a"].die})
        await freed(mesh, "0a", "1b", "2a")


async def test_nobody_holds_a_session_for_ever(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        run = Run(mesh, list(ROUTE), PROMPT, NEW)
        with pytest.raises(Exception, match=r"."):
            await run.go({10: mesh.members["0a"].die})
        behind = [mesh.members[name].replica for name in ("1a", "2a")]
        assert all(replica.sessions for replica in behind)
        monkeypatch.setattr(recovery, "HOLD_S", 0.0)
        for replica in behind:
            replica.drop_overdue(10**12)
        await freed(mesh, "1a", "2a")


async def test_a_caller_who_leaves_while_it_stands_still_frees_what_is_behind_the_gap(llama: Path) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        run = Run(mesh, list(ROUTE), PROMPT, NEW, spares={1: []})
        with pytest.raises(IndexError):  # there is no spare: the driver gives up and cancels its call
            await run.go({10: mesh.members["1a"].die})
        await freed(mesh, "0a", "2a")


async def test_a_route_for_a_session_that_is_over_is_refused(llama: Path) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        with pytest.raises(NotFound, match="session"):
            await mesh.reroute(5, 1, list(ROUTE))


@pytest.mark.parametrize("family", ["gemma", "gemma2", "mamba"])
@pytest.mark.parametrize("stage", [1, 2])
async def test_families_on_their_own_caches(
    family: str, stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain lists of positions, windows of them, and recurrent states, which cannot go back."""
    causal.make(family, tmp_path)
    layers = inspect(tmp_path).layers
    async with mesh_of(tmp_path, [0, layers // 3, layers * 2 // 3, layers]) as mesh:
        expected = await whole(mesh, SAMPLED)
        rows = computed(mesh, monkeypatch)
        other = 3 - stage
        spares = {stage: [f"{stage}b"] * 3, other: [f"{other}a"] * 3}
        run = Run(mesh, list(ROUTE), PROMPT, NEW, spares=spares, settings={"sampling": SAMPLED})
        assert await run.go({10: mesh.members[f"{stage}a"].die}) == expected
        # One that is under a pass just then is told again, as if it had been lost.
        assert {lost.replica_id for lost in run.lost} <= {f"{stage}a", f"{stage}b", f"{other}a"}
        if len(run.lost) == 1:
            for name in set(ROUTE) - {f"{stage}a"}:
                assert 0 <= rows[name] - (len(PROMPT) + NEW - 1) <= 1, name
        await freed(mesh, "0a", "1b", "2b")


async def test_the_replica_at_fault_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_of(llama, CUTS) as mesh:

        def refuses(*_: object, **__: object) -> None:
            raise Unavailable("injected fault")

        monkeypatch.setattr(mesh.members["1a"].replica, "open_session", refuses)
        request = OpenSession(
            session=1, model="m", route=mesh.hops(*ROUTE), token_ids=[5], prompt_tokens=1, max_tokens=2
        )
        call = mesh.channel("0a").unary_stream(
            f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
        )(request, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert dict(caught.value.trailing_metadata())[FAILED_REPLICA] == "1a"
        await freed(mesh)


async def test_a_session_that_comes_again_before_its_old_call_has_ended_blocks_nobody(llama: Path) -> None:
    async with mesh_of(llama, CUTS) as mesh:
        expected = await whole(mesh, Sampling())
        head = mesh.members["0a"].head
        assert head is not None
        first = Run(mesh, list(ROUTE), PROMPT, NEW, session=1)
        second = Run(mesh, list(ROUTE), PROMPT, NEW, session=1, epoch=1)
        again: list[asyncio.Task[list[int]]] = []

        async def come_again() -> None:
            second.tokens = list(first.tokens)
            again.append(asyncio.create_task(second.go()))
            while "sessions=1" not in repr(head) or not again[0].done():
                await asyncio.sleep(0.01)
                if again[0].done():
                    return

        beginning = asyncio.create_task(first.go({4: come_again}))
        while not again or not again[0].done():
            await asyncio.sleep(0.01)
        assert await again[0] == expected
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await freed(mesh)
        assert "passes=0" in repr(head)
        assert await whole(mesh, Sampling()) == expected
