"""What a stage holds while it computes: bounded by credits, in order, and kept until nothing uses it."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.link import OUTBOX, RELAY_METHOD
from stagemesh.services.stage.relay import CREDIT_BATCH, WINDOW
from stagemesh.services.stage.replica import Replica

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import TensorView, encode_frame
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, SessionClose, Step, StepKind, StepOpen
from tests.stage.two_stages import Route, route_of, settled

pytestmark = pytest.mark.asyncio

HELLO = Frame(hello=Hello(to_replica="r1")).SerializeToString()


@contextlib.contextmanager
def busy(replica: Replica) -> Iterator[None]:
    """Its compute thread is in a pass that ends when this is left."""
    over = threading.Event()
    replica.engine.submit(lambda: over.wait(20), lambda _: None)
    try:
        yield
    finally:
        over.set()


def opening(route: Route, session: int) -> tuple[Frame, TensorView]:
    """A frame that opens a stateless session of one row, and the row."""
    step = Step(
        session=session,
        kind=StepKind.STEP_KIND_STATELESS,
        tokens=1,
        open=StepOpen(route=route.hops, outputs=["last_hidden_state"]),
    )
    view = TensorView("F32", (1, 128), memoryview(torch.zeros(1, 128).numpy()).cast("B"))
    return Frame(steps=[step]), view


def stateless(route: Route, session: int) -> bytes:
    """The same, serialised."""
    return encode_frame(*opening(route, session))


async def eventually(condition: object) -> None:
    async with asyncio.timeout(5):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_frames_come_in_while_a_pass_runs_and_keep_their_credits_until_they_are_done_with(
    llama: Path,
) -> None:
    async with route_of(llama) as route:
        stage = route.replicas[1]
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(HELLO)
        assert (await call.read()).credits == WINDOW
        with busy(stage):
            for number in range(WINDOW):
                await call.write(stateless(route, 100 + number))
            await eventually(lambda: stage.held == WINDOW)
            assert stage.engine.waiting == WINDOW + 1
            waits = asyncio.create_task(call.read())
            await asyncio.sleep(0.05)
            assert not waits.done()
        assert (await waits).credits == CREDIT_BATCH
        back = CREDIT_BATCH
        while back < WINDOW:
            back += (await asyncio.wait_for(call.read(), 5)).credits
        assert back == WINDOW
        assert stage.held == 0
        call.cancel()


async def test_a_frame_without_a_credit_ends_the_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        with busy(route.replicas[1]), pytest.raises(InvalidArgument, match="without a credit"):
            await route.relay(1, [HELLO, *(stateless(route, 100 + n) for n in range(WINDOW + 1))])
        await eventually(lambda: route.replicas[1].held == 0)
        assert len(await route.generate([5], 2)) == 2


async def test_what_a_session_reserved_is_kept_until_no_pass_uses_it(llama: Path) -> None:
    async with route_of(llama) as route:
        stage = route.replicas[1]
        task = asyncio.create_task(route.generate([5, 6, 7], 400))
        await eventually(lambda: stage.sessions)
        with busy(stage):
            await eventually(lambda: stage.engine.waiting > 1)
            session = next(iter(stage.sessions.values()))
            stage.end_session(session)
            assert session.ended
            assert stage.pool.used_bytes > 0
        await eventually(lambda: not stage.pool.used_bytes)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled(route)


async def test_a_close_waits_for_the_steps_before_it(llama: Path) -> None:
    async with route_of(llama) as route:
        stage = route.replicas[1]
        call = route.channel_to(1).stream_stream(RELAY_METHOD, None, Feedback.FromString)()
        await call.write(HELLO)
        await call.read()
        with busy(stage):
            await call.write(stateless(route, 7))
            await call.write(Frame(closes=[SessionClose(session=7)]).SerializeToString())
            await eventually(lambda: stage.engine.waiting == 3)
            assert 7 in stage.sessions
        await eventually(lambda: not stage.sessions and not stage.held)
        call.cancel()


async def test_stateless_passes_wait_for_the_next_stage_before_they_compute(llama: Path) -> None:
    async with route_of(llama) as route:
        assert len(await route.generate([5], 2)) == 2
        await settled(route)
        head, stage = route.replicas
        with busy(stage):
            tasks = [asyncio.create_task(route.forward(100 + n)) for n in range(WINDOW + OUTBOX + 20)]
            await eventually(lambda: stage.held > WINDOW - CREDIT_BATCH)
            await asyncio.sleep(0.3)
            waiting = sum(link.queued + link.reserved for link in head.links._links.values())
            assert waiting <= OUTBOX
            assert head.engine.waiting == 0
            assert stage.held <= WINDOW
        assert await asyncio.gather(*tasks) == [[1, 128]] * len(tasks)
        await settled(route)


async def test_the_time_without_a_pass_is_told_as_a_bubble(llama: Path) -> None:
    async with route_of(llama) as route:
        seen: list[int] = []
        to_head = route.replicas[0].on_result
        assert to_head is not None

        def listen(result: object, tensor: object, hops: list) -> None:
            seen.extend(hop.bubble_us for hop in hops if hop.stage == 1)
            assert all(hop.rows == 3 or result.token.position > 3 for hop in hops)  # type: ignore[attr-defined]
            to_head(result, tensor, hops)  # type: ignore[arg-type]

        route.replicas[0].on_result = listen
        await route.generate([5, 6, 7], 6)
        # The first pass of a session that is alone follows no other; the next ones wait for the head.
        assert seen[0] == 0
        assert all(us > 0 for us in seen[1:])
