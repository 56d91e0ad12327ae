"""The stream of reports of a real replica, over its socket; and a beginning of which a stage has only a part."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from stagemesh.services.stage import metrics, prefix_reports
from stagemesh.services.stage.pass_costs import PassCosts
from stagemesh.services.stage.prefix_reports import watch_prefixes
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.errors import NotFound, ResourceExhausted
from stagemesh.prefix import BLOCK, SHORT_BYTES, digests
from stagemesh.v1.stage_pb2 import OpenSession, PrefixReport, SessionEvent, WatchPrefixesRequest
from tests.stage.test_partition import whole
from tests.stage.two_stages import Route, route_of, settled

PROMPT = [3 + (7 * index) % 90 for index in range(6 * BLOCK + 5)]
NEW = 6


def short(prompt: list[int]) -> set[bytes]:
    return {digest[:SHORT_BYTES] for digest in digests(prompt)}


def split(joined: bytes) -> set[bytes]:
    return {joined[at : at + SHORT_BYTES] for at in range(0, len(joined), SHORT_BYTES)}


def watch(route: Route, stage: int) -> "grpc.aio.UnaryStreamCall[WatchPrefixesRequest, PrefixReport]":
    return route.channel_to(stage).unary_stream(
        f"/{SERVICE}/WatchPrefixes", WatchPrefixesRequest.SerializeToString, PrefixReport.FromString
    )(WatchPrefixesRequest(replica_id=route.replicas[stage].replica_id), timeout=30)


async def until_held(
    reports: AsyncIterator[PrefixReport], wanted: set[bytes], held: set[bytes]
) -> PrefixReport:
    async for report in reports:
        held |= split(report.held)
        held -= split(report.dropped)
        if held == wanted:
            return report
    raise AssertionError("the stream ended")


async def test_every_stage_says_what_it_holds_and_what_it_dropped(llama: Path) -> None:
    async with route_of(llama, chunk_tokens=40) as route:
        for stage in (0, 1):
            reports = watch(route, stage)
            first = await anext(aiter(reports))
            assert first.full
            held = split(first.held)
            assert held == (set() if stage == 0 else short(PROMPT)), "what was there before the stream"
            if stage == 0:
                await route.generate(PROMPT, NEW)
            else:
                await route.generate([9, *PROMPT], NEW, session=2)
            wanted = short(PROMPT) | (short([9, *PROMPT]) if stage else set())
            last = await until_held(reports, wanted, held)
            assert last.load.replica_id == route.replicas[stage].replica_id
            assert last.load.prompt_token_us > 0
            await settled(route)
            pool = route.replicas[stage].pool
            pool.release(pool.reserve(pool.blocks.total * BLOCK))  # everything idle goes
            await until_held(reports, set(), held)
            reports.cancel()


async def test_an_event_says_how_much_was_not_computed(llama: Path) -> None:
    async with route_of(llama) as route:
        for session, expected in ((1, 0), (2, 6 * BLOCK)):
            request = OpenSession(
                session=session, model="m", route=route.hops, token_ids=PROMPT, max_tokens=2,
                prompt_tokens=len(PROMPT),
            )  # fmt: skip
            call = route.channel.unary_stream(
                f"/{SERVICE}/Generate", OpenSession.SerializeToString, SessionEvent.FromString
            )(request, timeout=20)
            assert [event.reused_tokens async for event in call][:1] == [expected]


@pytest.mark.parametrize("lost_again", [False, True])
async def test_a_stage_that_has_a_part_of_the_beginning_spares_that_part(
    llama: Path, lost_again: bool
) -> None:
    wanted = whole(llama, [PROMPT], NEW)[0][len(PROMPT) :]
    reused = metrics.REUSED_TOKENS.labels("m")
    async with route_of(llama, chunk_tokens=40) as route:
        assert await route.generate(PROMPT, NEW) == wanted
        await settled(route)
        pool = route.replicas[1].pool
        # All of the room that nobody needs, and two blocks that are merely remembered: the ends of beginnings go first.
        pool.release(pool.reserve((pool.blocks._free + 2) * BLOCK))
        kept = pool.blocks.known(digests(PROMPT))
        assert 0 < kept < 6
        if lost_again:
            reserve, tries = pool.reserve, []

            def forgets(*asked: object) -> object:
                tries.append(asked[2])
                if len(tries) == 2:  # most of what it said it has is gone a moment later
                    pool.release(reserve((pool.blocks.total - 1) * BLOCK))
                return reserve(*asked)  # type: ignore[arg-type]

            pool.reserve = forgets  # type: ignore[method-assign, assignment]
        before = reused._value.get()
        assert await route.generate(PROMPT, NEW, session=2) == wanted
        assert reused._value.get() - before == (0 if lost_again else kept * BLOCK)
        if lost_again:
            assert tries == [6 * BLOCK, kept * BLOCK, 0]
        await settled(route)


class _Gone:
    """A node whose replica is unloaded while somebody listens."""

    def __init__(self, replica: object) -> None:
        self.replica: object | None = replica

    def find(self, replica_id: str) -> object | None:
        return self.replica


async def test_a_stream_ends_with_its_replica_and_keeps_nothing_of_it(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_reports, "LOOK_S", 0.05)
    monkeypatch.setattr(prefix_reports, "MOST_FOLLOWERS", 1)
    async with route_of(llama) as route:
        node = _Gone(route.replicas[0])
        reports = watch_prefixes("r", node.find)  # type: ignore[arg-type]
        assert (await anext(reports)).full
        with pytest.raises(ResourceExhausted):
            await anext(watch_prefixes("r", node.find))  # type: ignore[arg-type]
        ending = asyncio.create_task(anext(reports))
        await asyncio.sleep(0.2)
        assert not ending.done()

        class Replaced:
            pool = route.replicas[1].pool

        node.replica = Replaced()
        with pytest.raises(NotFound):
            await ending
        assert route.replicas[0].pool.blocks.holdings.listeners == 0
        with pytest.raises(NotFound):
            await anext(watch_prefixes("r", lambda _: None))
        kept = weakref.ref(node.replica)
        waiting = watch_prefixes("r", node.find)  # type: ignore[arg-type]
        node.replica.load = route.replicas[0].load  # type: ignore[attr-defined]
        await anext(waiting)
        node.replica = None
        gc.collect()
        assert kept() is None, "a stream that waits holds no unloaded partition"
        await waiting.aclose()


def test_short_ends_of_prompts_hardly_move_what_a_token_costs() -> None:
    costs = PassCosts()
    costs.passed(10_000, 0)
    for _ in range(10):
        costs.passed(10_000 + 512 * 100, 512)
    assert costs.token_us == pytest.approx(100)
    costs.passed(14_000, 2)
    assert 100 < costs.token_us < 105
    costs.passed(0, 0)
    assert costs.decode_us == pytest.approx(8000)
