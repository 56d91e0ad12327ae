"""Many generations at once, and what each of them got: its tokens, how long it stood still, and by which route."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError

STREAMS = 64
TOKENS = 96
# Few candidates, so that few answers hang on a rounding error: see `decided`.
TEMPERATURE, TOP_K = 0.8, 4


@dataclass(frozen=True)
class Place:
    """What one of the 64 asks for. Even numbers are greedy, odd ones sampled; a variant is another prompt and seed."""

    number: int
    variant: int = 0

    @property
    def greedy(self) -> bool:
        return self.number % 2 == 0

    @property
    def seed(self) -> int:
        return self.number + 1000 * self.variant

    @property
    def prompt(self) -> list[int]:
        """Prompts of different lengths that share nothing."""
        first = self.number * 37 + self.variant * 101
        return [2 + (first + 11 * step) % 500 for step in range(3 + self.number % 61)]


@dataclass
class Stream:
    """One generation. Times are monotonic seconds; `waits` are those for its chunks, the first included: their ends and lengths."""

    place: Place
    began: float
    limit: int = TOKENS
    tokens: list[int] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    ended: float = 0.0
    # As far as it is known.
    route: tuple[str, ...] = ()
    error: StagemeshError | None = None

    def stall_s(self, since: float = 0.0) -> float | None:
        """The longest wait that was not over at `since`; None when all of them were."""
        return max((seconds for end, seconds in self.waits if end > since), default=None)


async def generate(client: AsyncClient, model: str, stream: Stream, *, cache: bool = False) -> Stream:
    """Run one to its end or its error."""
    place = stream.place
    before = stream.began
    call = client.stream(
        model,
        token_ids=place.prompt,
        max_tokens=stream.limit,
        temperature=0.0 if place.greedy else TEMPERATURE,
        top_k=None if place.greedy else TOP_K,
        seed=None if place.greedy else place.seed,
        ignore_eos=True,
        cache=cache,
        timeout_s=120,
    )
    try:
        async for chunk in call:
            now = time.monotonic()
            if not chunk.token_ids:
                continue
            stream.waits.append((now, now - before))
            stream.tokens.extend(chunk.token_ids)
            stream.route = tuple(hop.replica_id for hop in call.route)
            before = now
    except StagemeshError as error:
        stream.error = error
    finally:
        stream.ended = time.monotonic()
    return stream


@dataclass
class Load:
    """64 places, each of which asks for the same answer again and again until the load is over."""

    streams: list[Stream] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> int:
        """Tokens so far, of all rounds."""
        return sum(len(stream.tokens) for stream in self.streams)

    @property
    def under_way(self) -> int:
        """Streams that run now."""
        return sum(not stream.ended for stream in self.streams)

    def at(self, replica_id: str) -> int:
        """Streams that run now, have tokens, and go through that replica."""
        return sum(
            not stream.ended and bool(stream.tokens) and replica_id in stream.route for stream in self.streams
        )

    async def reach(self, share: float, within_s: float = 60.0) -> None:
        """Return when so much of one round's tokens came from now on."""
        goal = self.tokens + share * STREAMS * TOKENS
        async with asyncio.timeout(within_s):
            while self.tokens < goal:
                await asyncio.sleep(0.01)

    async def round(self, within_s: float = 90.0) -> None:
        """Return when every stream that runs now has ended."""
        running = [stream for stream in self.streams if not stream.ended]
        end = time.monotonic() + within_s
        while left := [stream for stream in running if not stream.ended]:
            if time.monotonic() > end:
                words = ", ".join(
                    f"{each.place.number} with {len(each.tokens)} tokens after {time.monotonic() - each.began:.0f} s"
                    for each in left
                )
                raise TimeoutError(f"streams do not end within {within_s:.0f} s: {words}")
            await asyncio.sleep(0.02)

    def since(self, moment: float) -> list[Stream]:
        """Streams that began after `moment` and have ended."""
        return [stream for stream in self.streams if stream.began >= moment and stream.ended]


@asynccontextmanager
async def load(
    clients: Sequence[AsyncClient],
    model: str,
    places: Sequence[Place],
    *,
    rounds: int | None = None,
    cache: bool = False,
    tokens: int = TOKENS,
) -> AsyncIterator[Load]:
    """Streams from every place while the body runs, or so many `rounds` of them, and each of them to its end."""
    seen = Load()

    async def fill(place: Place) -> None:
        done = 0
        while done != rounds and (rounds or not seen.over.is_set()):
            stream = Stream(place, time.monotonic(), tokens)
            seen.streams.append(stream)
            await generate(clients[place.number % len(clients)], model, stream, cache=cache)
            done += 1
            if stream.error is not None:
                await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(fill(place)) for place in places]
    try:
        yield seen
        seen.over.set()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def golden(client: AsyncClient, model: str, places: Sequence[Place]) -> dict[Place, list[int]]:
    """What every place gets when nothing happens; raises when it is not a whole answer for each."""
    async with load([client], model, places, rounds=1) as seen:
        pass
    for stream in seen.streams:
        if stream.error is not None:
            raise stream.error
        assert len(stream.tokens) == TOKENS, f"{len(stream.tokens)} tokens"
    found = {stream.place: stream.tokens for stream in seen.streams}
    assert found.keys() == set(places)
    return found
