"""The router's end of `LookupStream`: one open stream to each cache, for the lookups that are answered at once.

A call of its own costs a lookup more than a message on an open stream does. The first lookup opens it; where it cannot be
had, breaks, or does not do, the caller makes the call, and learns from that what is wrong.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import grpc.aio

from stagemesh.v1.cache_pb2 import CacheLookupRequest, CacheLookupResponse

from .patience import patiently

log = logging.getLogger(__name__)
ASK_AGAIN_S = 30.0
"""How long a cache is asked by calls where a stream gave no answer at all: it may be of an earlier version."""
MAX_WRITES = 256
"""Messages on their way to one cache; beyond that calls are made."""


class LookupStream:
    """To one cache, opened on first use. `close` ends it; its tasks live no longer than it."""

    def __init__(self, address: str, open_call: Callable[[], Any]) -> None:
        self.address = address
        self._open_call = open_call
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[CacheLookupResponse | None]] = {}
        self._ids = itertools.count(1)
        self._writing = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._ask_again_at = float("-inf")

    def __repr__(self) -> str:
        state = "open" if self._call is not None else "closed"
        return f"<LookupStream {self.address} {state} waiting={len(self._waiting)}>"

    async def ask(self, request: CacheLookupRequest, timeout_s: float) -> CacheLookupResponse | None:
        """The answer; None: make a call. As many at once as the caller asks. Raises `TimeoutError`."""
        if time.monotonic() < self._ask_again_at or len(self._writes) >= MAX_WRITES:
            return None
        if self._call is None:
            # Not in the context of the request that happens to come first.
            own = Context()
            self._call = own.run(self._open_call)
            self._reader = asyncio.create_task(self._read(self._call), name="cache-lookups", context=own)
        number = next(self._ids)
        request.id = number
        answer: asyncio.Future[CacheLookupResponse | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        # A task of its own: gRPC ends a stream whose write is cancelled, and whoever asks here may be.
        write = asyncio.create_task(self._write(self._call, request))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        try:
            found = await patiently(answer, answer.cancel, timeout_s)
        finally:
            self._waiting.pop(number, None)
        return None if found is None or found.ask_alone else found

    async def close(self) -> None:
        """End the stream; who waits on it makes a call."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        await asyncio.gather(*self._writes, return_exceptions=True)

    async def _write(self, call: Any, request: CacheLookupRequest) -> None:
        try:
            async with self._writing:
                if call is self._call and request.id in self._waiting:
                    await call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            pass  # the reader learns why

    async def _read(self, call: Any) -> None:
        answered = False
        why = "it ended the stream"
        try:
            async for response in call:
                answered = True
                answer = self._waiting.get(response.id)
                if answer is not None and not answer.done():
                    answer.set_result(response)
        except grpc.aio.AioRpcError as error:
            why = error.code().name
        except (asyncio.CancelledError, grpc.aio.UsageError):
            why = "it was closed here"
        finally:
            self._call = None
            call.cancel()
            if not answered:
                self._ask_again_at = time.monotonic() + ASK_AGAIN_S
            log.info("cache.lookups_ended by=%s answered=%s: %s", self.address, answered, why)
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_result(None)
