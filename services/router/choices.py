"""Several answers to one prompt, as one stream."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from stagemesh.v1 import inference_pb2

from .admission.gate import Place
from .cache.client import HIT
from .generate import Generation
from .pump import Pump


class Choices:
    """The answers of a request with n above 1, interleaved as they come.

    Each is a session with a seed of its own and takes a place of its own among the running requests, which it
    gives back when it is done: a request that waits for a place holds none. The first answer goes ahead, and the
    others follow when its prompt is computed, because stages keep what a prompt left in their KV blocks.
    """

    def __init__(self, generations: Sequence[Generation], admitted: Callable[[], Place]) -> None:
        self._generations = generations
        self._admitted = admitted
        self._prompt_computed = asyncio.Event()

    def __repr__(self) -> str:
        return f"Choices({len(self._generations)}, prompt_computed={self._prompt_computed.is_set()})"

    async def run(self) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Responses, which say of which answer they are; the first error of any ends them all."""
        pump = Pump([self._one(index) for index in range(len(self._generations))])
        try:
            async for _, response in pump:
                yield response
        finally:
            await pump.close()

    async def _one(self, index: int) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        if index:
            await self._prompt_computed.wait()
        generation = self._generations[index]
        async with self._admitted() as place, aclosing(generation.run()) as responses:
            async for response in responses:
                self._prompt_computed.set()
                got_on(place, generation, response)
                yield response


def got_on(place: Place, generation: Generation, response: inference_pb2.GenerateResponse) -> None:
    """Tell admission what the model got done; an answer from the cache is none of its."""
    if response.tokens and generation.cache_status != HIT:
        place.progress(len(response.tokens))
