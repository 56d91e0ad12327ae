"""What both kinds of stream know: what arrived, where the call is, and what a break means. Pure."""

import time
from collections.abc import Callable

from stagemesh.client.failover import Failure, Journey
from stagemesh.client.received import Received
from stagemesh.client.results import Chunk, GenerationBuilder, RouteHop
from stagemesh.errors import Unavailable
from stagemesh.v1 import inference_pb2


class StreamState:
    """The part of a generation's stream that neither waits nor calls. `clock` gives monotonic seconds."""

    def __init__(
        self,
        request: inference_pb2.GenerateRequest,
        journey: Journey,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journey = journey
        self._clock = clock
        self._received = Received(request)
        self._builder = GenerationBuilder(started=clock())
        self._ended: float | None = None

    @property
    def route(self) -> tuple[RouteHop, ...]:
        """One replica per stage; empty before the first chunk and when the cache answered."""
        return self._builder.route

    @property
    def cache(self) -> str:
        """`hit`, `miss`, `bypass` or `error`; empty before the first chunk."""
        return self._builder.cache

    @property
    def request_id(self) -> str:
        """The id under which the router logged and traced the request."""
        return self._builder.request_id

    @property
    def target(self) -> str:
        """host:port of the router that it comes from; another one after a break."""
        return self._journey.address

    def _take(self, response: inference_pb2.GenerateResponse) -> Chunk | None:
        """The chunk of a response; None when its router began anew instead of going on."""
        if not self._received.add(response):
            return None
        self._journey.heard()
        return self._builder.add(response, self._clock())

    def _end(self) -> None:
        self._ended = self._ended or self._clock()

    def _over(self, failure: Failure) -> bool:
        """Whether a failed call had said everything before; raises the error when nobody can go on with it."""
        if self._received.whole:
            self._end()
            return True
        if not self._received.may_go_on:
            raise failure.error
        return False

    def _wait_s(self, failure: Failure) -> float:
        """Seconds to wait before the next attempt; raises the error when there is none."""
        return self._journey.failed(failure, self._clock(), resumes=self._received.begun)

    def _began_anew(self) -> Failure:
        return Failure(Unavailable(f"the router at {self.target} cannot go on with a stream"), answered=True)
