"""The gRPC contenders of the transport benchmark: what makes each message, and a stream that sends within credits."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio
import numpy as np

from bench.peer import SERVICE
from services.stage.config import StageConfig
from services.stage.link import Link
from services.stage.shared_memory import SendingLane
from stagemesh.errors import StagemeshError
from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import STEP_KIND_DECODE, Feedback, Frame, Hello, RouteHop, Step
from stagemesh.v1.tensor_pb2 import Tensor

STREAM_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A method of the peer, and what makes one message for it; with the lane that it uses and the payload, if any."""

    method: str
    make: Callable[[], bytes]
    lane: SendingLane | None = None
    payload: TensorView | None = None


def _header(rows: int) -> Frame:
    step = Step(session=1, kind=STEP_KIND_DECODE, position=7, tokens=rows, sample=True)
    return Frame(steps=[step], sent_unix_us=1)


def contenders(array: np.ndarray) -> dict[str, Contender]:
    """By name, for an F32 array `[rows, hidden]`: all but the link that stages use themselves."""
    rows, hidden = array.shape
    plain = array.tobytes()
    view = TensorView("F32", (rows, hidden), array.data.cast("B"))
    lane = SendingLane(StageConfig.model_fields["shared_memory_mb"].default * 2**20)

    def protobuf() -> bytes:
        message = _header(rows)
        message.tensor.CopyFrom(Tensor(dtype="F32", shape=(rows, hidden), data=array.tobytes()))
        return message.SerializeToString()

    return {
        "bytes": Contender("Bytes", lambda: plain),
        "bytes of the tensor": Contender("Bytes", array.tobytes),
        "protobuf": Contender("Protobuf", protobuf),
        "shm": Contender("Frame", lambda: lane.encode(_header(rows), view), lane, view),
    }


class Stream:
    """One long-lived stream of a contender to the peer; use as `async with Stream(...) as stream`."""

    def __init__(self, channel: grpc.aio.Channel, contender: Contender) -> None:
        self._contender = contender
        method = f"/{SERVICE}/{contender.method}"
        self._call = channel.stream_stream(method, None, Feedback.FromString)(timeout=STREAM_TIMEOUT_S)
        self._credits = 0
        self._sent = self._done = 0
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Stream":
        lane = self._contender.lane
        hello = Hello(shared=lane.offer if lane is not None else None)
        await self._call.write(Frame(hello=hello).SerializeToString())
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._call.done_writing()
        await self._reader
        if self._contender.lane is not None:
            self._contender.lane.close()

    async def _read(self) -> None:
        async for feedback in self._call:
            self._credits += feedback.credits
            if not feedback.HasField("hello"):
                self._done += feedback.credits
            elif self._contender.lane is not None:
                self._contender.lane.answered(feedback.hello.shared_accepted)
            self._news.set()

    async def _change(self) -> None:
        self._news.clear()
        if self._reader.done():
            raise RuntimeError("the peer ended the stream")
        await self._news.wait()

    async def send(self, count: int) -> float:
        """Seconds from the first of `count` messages to the credit for the last one; whole batches of credits."""
        contender = self._contender
        lane, payload = contender.lane, contender.payload
        started = time.perf_counter()
        for _ in range(count):
            while self._credits <= 0 or (lane is not None and lane.waits(payload)):
                await self._change()
            self._credits -= 1
            self._sent += 1
            await self._call.write(contender.make())
        while self._done < self._sent:
            await self._change()
        return time.perf_counter() - started


class Linked:
    """Frames as one stage sends them to another on a gRPC stream; use as `async with Linked(...) as linked`."""

    def __init__(self, address: str, array: np.ndarray) -> None:
        self._rows = array.shape[0]
        self._view = TensorView("F32", array.shape, array.data.cast("B"))
        self._hop = RouteHop(stage=1, replica_id="peer", address=address)
        self._sent = self._done = 0
        self._news = asyncio.Event()

    async def __aenter__(self) -> "Linked":
        self._link = Link("bench", self._hop, self._told, self._broken, local_sockets=False)
        await self._link.met()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close()

    def _told(self, link: Link, feedback: Feedback) -> None:
        if not feedback.HasField("hello"):
            self._done += feedback.credits
            self._news.set()

    def _broken(self, link: Link, error: StagemeshError) -> None:
        self._news.set()

    async def send(self, count: int) -> float:
        """Seconds from the first of `count` frames to the credit for the last one; whole batches of credits."""
        started = time.perf_counter()
        for _ in range(count):
            await self._link.room()
            self._link.post(_header(self._rows), self._view)
            self._sent += 1
        while self._done < self._sent:
            self._news.clear()
            if self._link.broken:
                raise RuntimeError("the link broke")
            await self._news.wait()
        return time.perf_counter() - started
