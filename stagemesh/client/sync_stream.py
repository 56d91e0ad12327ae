"""The chunks of a generation, blocking."""

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc

from stagemesh.client.failover import Journey
from stagemesh.client.results import Chunk, Generation
from stagemesh.client.stream_state import StreamState
from stagemesh.client.wire import failure_of
from stagemesh.errors import Cancelled
from stagemesh.v1 import inference_pb2


class GenerationStream(StreamState):
    """Chunks of one generation, as they come: `for chunk in stream`.

    `route`, `cache` and `request_id` are known from the first chunk on; `generation()` drains what is left and
    returns the whole. When its router goes away it goes on at another one, with the tokens it would have had.
    Leaving the loop early: `stream.close()` (or `with`) cancels the generation on every stage. Raises
    what `stagemesh.errors` names.
    """

    def __init__(
        self,
        request: inference_pb2.GenerateRequest,
        journey: Journey,
        call: Callable[[inference_pb2.GenerateRequest, Journey], Any],
    ) -> None:
        super().__init__(request, journey)
        self._make_call = call
        self._closed = threading.Event()
        self._start()

    def _start(self) -> None:
        self._call = self._make_call(self._received.request(), self._journey)
        self._responses = iter(self._call)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while True:
            try:
                chunk = self._take(next(self._responses))
            except StopIteration:
                self._end()
                raise
            except grpc.RpcError as error:
                failure = failure_of(error, self.target)
                if self._closed.is_set():
                    raise failure.error from None
            else:
                if chunk is not None:
                    return chunk
                self._call.cancel()
                failure = self._began_anew()
            if self._over(failure):
                raise StopIteration
            if self._closed.wait(self._wait_s(failure)):
                raise Cancelled("the stream was closed")
            self._start()

    def generation(self) -> Generation:
        """Read to the end and return the whole generation."""
        for _ in self:
            pass
        return self._builder.build(self._ended or time.monotonic())

    def close(self) -> None:
        """Cancel the generation if it still runs."""
        self._closed.set()
        self._call.cancel()

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
