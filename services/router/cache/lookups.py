"""The router's end of `LookupStream`: one open stream to each cache, for the lookups that are answered at once.

A call of its own costs a lookup more than a message on an open stream does, and a stream takes one message a turn of the
loop: lookups that come while one is being written go together in the next. The first lookup opens the stream; where it
cannot be had, breaks, or does not do, the caller makes the call, and learns from that what is wrong.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import grpc.aio

from stagemesh.v1.cache_pb2 import CacheLookupRequest, CacheLookupResponse, CacheLookups

from .patience import patiently

log = logging.getLogger(__name__)
ASK_AGAIN_S = 30.0
"""How long a cache is asked by calls where a stream gave no answer at all: it may be of an earlier version."""
MAX_UNSENT = 256
"""Lookups that wait to be written to one cache; beyond that calls are made."""


class LookupStream:
    """To one cache, opened on first use. `close` ends it; its tasks live no longer than it."""

    def __init__(self, address: str, open_call: Callable[[], Any]) -> None:
        self.address = address
        self._open_call = open_call
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[CacheLookupResponse | None]] = {}
        self._ids = itertools.count(1)
        self._unsent: list[CacheLookupRequest] = []
        self._writer: asyncio.Task[None] | None = None
        self._ask_again_at = float("-inf")

    def __repr__(self) -> str:
        state = "open" if self._call is not None else "closed"
        return f"<LookupStream {self.address} {state} waiting={len(self._waiting)}>"

    async def ask(self, request: CacheLookupRequest, timeout_s: float) -> CacheLookupResponse | None:
        """The answer; None: make a call. As many at once as the caller asks. Raises `TimeoutError`."""
        if time.monotonic() < self._ask_again_at or len(self._unsent) >= MAX_UNSENT:
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
        self._unsent.append(request)
        if self._writer is None:
            # A task of its own: gRPC ends a stream whose write is cancelled, and whoever asks here may be.
            self._writer = asyncio.create_task(self._write(), context=Context())
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
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _write(self) -> None:
        """Write what waits, until nothing does."""
        try:
            while self._unsent:
                batch, self._unsent = self._unsent, []
                answers = ((each, self._waiting.get(each.id)) for each in batch)
                wanted = [each for each, answer in answers if answer is not None and not answer.done()]
                call = self._call
                if call is None or not wanted:
                    continue
                try:
                    await call.write(CacheLookups(lookups=wanted))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                    pass  # the reader learns why
        finally:
            self._writer = None  # whatever happened, the next lookup has one

    async def _read(self, call: Any) -> None:
        answered = False
        why = "it ended the stream"
        try:
            async for message in call:
                answered = True
                for response in message.answers:
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
