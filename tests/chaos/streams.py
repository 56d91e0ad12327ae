"""Many generations at once while something is done to the mesh, with what each of them got and how long it stood still."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stagemesh import AsyncClient
from stagemesh.errors import StagemeshError

TOKENS = 96


@dataclass
class Stream:
    """One generation."""

    number: int
    tokens: list[int] = field(default_factory=list)
    # Longest time between two of its tokens, in seconds.
    stall_s: float = 0.0
    error: StagemeshError | None = None


def prompt(number: int) -> list[int]:
    """Prompts of different lengths that share nothing."""
    return [2 + (number * 37 + 11 * step) % 500 for step in range(3 + number % 17)]


async def stream(client: AsyncClient, model: str, number: int, into: Stream) -> None:
    """Run one: every second one greedy, the others sampled with a seed of their own."""
    greedy = number % 2 == 0
    before = time.monotonic()
    try:
        async for chunk in client.stream(
            model,
            token_ids=prompt(number),
            max_tokens=TOKENS,
            temperature=0.0 if greedy else 0.8,
            seed=None if greedy else number,
            ignore_eos=True,
            timeout_s=120,
        ):
            now = time.monotonic()
            if chunk.token_ids and into.tokens:
                into.stall_s = max(into.stall_s, now - before)
            into.tokens.extend(chunk.token_ids)
            before = now
    except StagemeshError as error:
        into.error = error


async def streams(
    client: AsyncClient, model: str, count: int, when: Callable[[list[Stream]], object] | None = None
) -> list[Stream]:
    """`count` at once; `when`, a coroutine function, runs beside them."""
    all_ = [Stream(number) for number in range(count)]
    tasks = [asyncio.create_task(stream(client, model, each.number, each)) for each in all_]
    try:
        if when is not None:
            await when(all_)  # type: ignore[misc]
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return all_
