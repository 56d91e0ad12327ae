"""Talks to a route's head directly, as a router does: sessions with their timings, and nothing of the router's."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio

from stagemesh import AsyncClient
from stagemesh.grpc_server import create_channel
from stagemesh.v1 import stage_pb2, stage_pb2_grpc

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class HeadSession:
    """A generation at the head: seconds per token after the first, and of those the stages' computing."""

    step_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class HeadForward:
    """A stateless micro-batch at the head: when it was sent and answered, and each stage's computing, in seconds."""

    sent: float
    answered: float
    compute_s: list[float]


def busy(answers: Sequence[HeadForward], begin: float, end: float) -> float:
    """Share of the time from `begin` to `end` that the less busy stage computed for the micro-batches answered then.

    Raises:
        ValueError: none was.
    """
    within = [one.compute_s for one in answers if begin < one.answered <= end]
    if not within:
        raise ValueError("no micro-batch was answered in that time")
    return min(map(sum, zip(*within, strict=True))) / (end - begin)


class Head:
    """One deployed model's route; use as `async with Head(...) as head`."""

    def __init__(self, model: str, route: list[stage_pb2.RouteHop]) -> None:
        self._model = model
        self._route = route
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> "Head":
        self._channel = create_channel(self._route[0].address)
        self._stub = stage_pb2_grpc.StageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._channel is not None
        await self._channel.close()

    async def generate(self, prompt: list[int], new_tokens: int) -> HeadSession:
        """Run one greedy generation, alone."""
        request = stage_pb2.OpenSession(
            session=random.getrandbits(63) | 1,
            model=self._model,
            route=self._route,
            token_ids=prompt,
            prompt_tokens=len(prompt),
            max_tokens=new_tokens,
        )
        times: list[float] = []
        compute_us = steps = 0.0
        async for event in self._stub.Generate(request, timeout=_TIMEOUT_S):
            times += [time.perf_counter()] * len(event.tokens)
            if event.finish_reason:
                compute_us = sum(timing.compute_us for timing in event.timings)
                steps = max(timing.steps for timing in event.timings)
        return HeadSession((times[-1] - times[0]) / (len(times) - 1), compute_us / 1e6 / steps)

    async def forward(self, request: stage_pb2.ForwardRequest) -> HeadForward:
        """Run one stateless micro-batch; `model`, `route` and `session` are filled in."""
        sent = stage_pb2.ForwardRequest(
            session=random.getrandbits(63) | 1, model=self._model, route=self._route
        )
        sent.MergeFrom(request)
        started = time.perf_counter()
        response = await self._stub.Forward(sent, timeout=_TIMEOUT_S)
        answered = time.perf_counter()
        by_stage = sorted(response.timings, key=lambda timing: timing.stage)
        return HeadForward(started, answered, [timing.compute_us / 1e6 for timing in by_stage])


async def find_head(client: AsyncClient, model: str) -> Head:
    """The head of the route that the router gives a generation of this model."""
    found = await client.generate(model, token_ids=[2, 3], max_tokens=1, ignore_eos=True, cache=False)
    hops = [
        stage_pb2.RouteHop(stage=h.stage, replica_id=h.replica_id, address=h.address) for h in found.route
    ]
    return Head(model, hops)
