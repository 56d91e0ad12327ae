"""Two partitions behind real sockets: what travels between them, and what happens when it is wrong."""

import asyncio
import gc
import time
import weakref
from pathlib import Path

import grpc
import pytest
import torch
from stagemesh.services.stage.canary import probe
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.relay import CREDIT_BATCH, WINDOW
from stagemesh.services.stage.replica import Replica
from stagemesh.services.stage.servicer import SERVICE

from stagemesh.checkpoint import inspect
from stagemesh.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.prefix import BLOCK
from stagemesh.tensor import TensorView, encode_frame
from stagemesh.v1.stage_pb2 import (
    ForwardRequest,
    ForwardResponse,
    Frame,
    Hello,
    Sampling,
    Step,
)
from stagemesh.v1.tensor_pb2 import Tensor
from tests.stage.two_stages import route_of, settled

pytestmark = pytest.mark.asyncio


async def test_a_session_is_freed_on_every_stage_when_it_ends(llama: Path) -> None:
    async with route_of(llama) as route:
        first = await route.generate([5, 6, 7], 6)
        assert len(first) == 6
        await settled(route)
        assert await route.generate([5, 6, 7], 6) == first


async def test_a_session_is_freed_on_every_stage_when_its_caller_leaves(llama: Path) -> None:
    async with route_of(llama) as route:
        task = asyncio.create_task(route.generate([5, 6, 7], 400))
        async with asyncio.timeout(5):
            while not route.replicas[1].sessions:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled(route)


async def test_a_later_stage_without_kv_memory_refuses_and_the_head_says_so(llama: Path) -> None:
    async with route_of(llama) as route:
        pool = route.replicas[1].pool
        everything = pool.reserve(pool.blocks.total * BLOCK)
        with pytest.raises(ResourceExhausted, match="KV memory") as caught:
            await route.generate([5, 6, 7], 6)
        assert caught.value.retry_after_s == 1.0, "as stage 1 said it"
        pool.release(everything)
        await settled(route)
        assert len(await route.generate([5, 6, 7], 6)) == 6


async def test_a_lost_stage_gives_unavailable_and_names_the_stage(llama: Path) -> None:
    async with route_of(llama) as route:
        task = asyncio.create_task(route.generate([5, 6, 7], 400))
        async with asyncio.timeout(5):
            while not route.replicas[1].sessions:
                await asyncio.sleep(0.01)
        await route.servers[1].stop(0)
        with pytest.raises(Unavailable, match="stage 1"):
            await task
        async with asyncio.timeout(3):
            while route.replicas[0].sessions:
                await asyncio.sleep(0.01)


async def test_a_deadline_that_passes_ends_the_session_everywhere(llama: Path) -> None:
    async with route_of(llama) as route:
        with pytest.raises(DeadlineExceeded):
            await route.generate([5, 6, 7], 480, deadline_unix_ms=int(time.time() * 1000) + 100)
        await settled(route)


@pytest.mark.parametrize(
    ("more", "prompt", "new"),
    [({}, [], 3), ({}, [5], 0), ({}, [512], 3), ({"stop_token_ids": []}, [5], 2**20)],
    ids=["no-prompt", "nothing-to-do", "beyond-vocabulary", "too-long"],
)
async def test_the_head_refuses_what_cannot_run(llama: Path, more: dict, prompt: list[int], new: int) -> None:
    async with route_of(llama) as route:
        with pytest.raises(InvalidArgument):
            await route.generate(prompt, new, **more)
        assert len(await route.generate([5], 2)) == 2


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"\xff\xff\xff"],
        [Frame().SerializeToString()],
        [Frame(hello=Hello(to_replica="r1")).SerializeToString(), b"garbage"],
    ],
    ids=["nothing", "not-a-frame", "no-hello", "garbage-later"],
)
async def test_a_stream_that_is_not_frames_is_refused_and_the_stage_lives_on(
    llama: Path, frames: list[bytes]
) -> None:
    async with route_of(llama) as route:
        with pytest.raises(InvalidArgument):
            await route.relay(1, frames)
        assert len(await route.generate([5], 2)) == 2


async def test_a_relay_to_an_unknown_replica_is_unavailable(llama: Path) -> None:
    async with route_of(llama) as route:
        with pytest.raises(Unavailable):
            await route.relay(1, [Frame(hello=Hello(to_replica="r9")).SerializeToString()])


async def test_steps_of_an_unknown_session_are_reported_and_others_go_on(llama: Path) -> None:
    async with route_of(llama) as route:
        hidden = torch.zeros(2, 128)
        view = TensorView("F32", (2, 128), memoryview(hidden.numpy()).cast("B"))
        frames = [
            Frame(hello=Hello(to_replica="r1")).SerializeToString(),
            *(
                encode_frame(Frame(steps=[Step(session=session, tokens=2, position=4)]), view)
                for session in range(70, 70 + CREDIT_BATCH)
            ),
        ]
        feedback = await route.relay(1, frames)
        assert feedback[0].credits == WINDOW
        assert [error.session for one in feedback for error in one.errors] == list(
            range(70, 70 + CREDIT_BATCH)
        )
        assert sum(one.credits for one in feedback) == WINDOW + CREDIT_BATCH
        assert route.replicas[1].held == 0


async def test_a_tensor_that_does_not_fit_its_steps_ends_the_stream(llama: Path) -> None:
    async with route_of(llama) as route:
        view = TensorView("F32", (1, 4), memoryview(bytes(16)))
        frames = [
            Frame(hello=Hello(to_replica="r1")).SerializeToString(),
            encode_frame(Frame(steps=[Step(session=77, tokens=1)]), view),
        ]
        with pytest.raises(StagemeshError):
            await route.relay(1, frames)
        assert len(await route.generate([5], 2)) == 2


async def test_an_output_that_the_model_lacks_is_an_error_of_its_name(llama: Path) -> None:
    async with route_of(llama) as route:
        ids = Tensor(name="input_ids", dtype="I64", shape=[3], data=bytes(24))
        request = ForwardRequest(session=3, model="m", route=route.hops, lengths=[2, 1], inputs=[ids])
        call = route.channel.unary_unary(
            f"/{SERVICE}/Forward", ForwardRequest.SerializeToString, ForwardResponse.FromString
        )
        answer = await call(request, timeout=10)
        assert [list(output.shape) for output in answer.outputs] == [[3, 512]]
        request.outputs.append("sentence_embedding")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request, timeout=10)
        assert from_rpc_error(caught.value).field == "outputs"
        await settled(route)


async def test_seeded_samples_do_not_depend_on_who_else_is_there(llama: Path) -> None:
    async with route_of(llama) as route:
        sampling = Sampling(temperature=1, seed=9)
        alone = await route.generate([5, 6], 10, sampling=sampling)
        together = await asyncio.gather(
            *(
                route.generate([5, 6] if s == 4 else [s], 10, sampling=sampling, session=s)
                for s in range(1, 9)
            )
        )
        assert together[3] == alone


async def test_the_canary_refuses_weights_that_are_not_finite(llama: Path) -> None:
    model = load_partition(llama, inspect(llama), task="generate", first=0, end=4)
    replica = Replica("r", "m", 0, model, 10**6)
    assert await probe(replica) > 0
    assert replica.pool.used_bytes == 0
    next(iter(model._skeleton.model.parameters())).fill_(float("nan"))
    with pytest.raises(StagemeshError, match="not finite"):
        await probe(replica)
    await replica.close()


async def test_an_unloaded_replica_keeps_no_memory(llama: Path) -> None:
    async with route_of(llama) as route:
        await route.generate([5, 6, 7], 3)
        model = weakref.ref(route.replicas[1].model)
        assert model() is not None
    del route
    async with asyncio.timeout(3):
        while model() is not None:
            gc.collect()
            await asyncio.sleep(0.01)
