"""F11: clients that leave at any moment."""

import asyncio
import contextlib
import time

import psutil

from .load import TOKENS, Place
from .mesh import MODEL, until
from .scenario import Run, scenario

CANCELS, CANCELS_SHORT = 10_000, 500


@scenario("F11", "clients that leave at any moment", each_seed=False)
async def cancels(run: Run) -> None:
    count = CANCELS if run.full else CANCELS_SHORT
    async with run.streams(rounds=1):
        pass  # every replica has met its neighbours: their connections stay
    before = await _held(run)
    left = iter(range(count))
    got = 0

    async def leave(number: int) -> None:
        nonlocal got
        place = Place(number % 64)
        stream = run.client.stream(
            MODEL, token_ids=place.prompt, max_tokens=TOKENS, temperature=0, ignore_eos=True, cache=False
        )
        # Before the first token, between two tokens, or in the middle of anything.
        patience = run.rng.choice([0.05, 0.3, 10.0]) * run.rng.random()
        enough = run.rng.randrange(1, TOKENS // 2)
        mine = 0
        async with stream:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    async for chunk in stream:
                        mine += len(chunk.token_ids)
                        if mine >= enough:
                            break
        got += mine

    async def worker() -> None:
        for number in left:
            await leave(number)

    await asyncio.gather(*(worker() for _ in range(64)))
    ended = time.monotonic()
    run.outcome.attempted += count
    run.say(f"{count} streams were left", f"after {got / count:.0f} tokens on average")

    async def free() -> bool:
        held = await _held(run)
        return all(
            held[what] <= before[what]
            for what in ("sessions", "KV bytes", "running", "waiting", "journal bytes")
        )

    try:
        await until(free, 30)
    except TimeoutError:
        run.say("still held", str(await _held(run)))
    run.within("until KV, sessions and requests were back", time.monotonic() - ended, 1.0)
    after = await _held(run)
    for what in before:
        run.say(f"{what} before and after", f"{before[what]}, {after[what]}")
    run.at_most("connections and files more than before", after["files"] - before["files"], 16)
    async with run.streams(rounds=1):
        pass


async def _held(run: Run) -> dict[str, int]:
    """What the mesh holds for clients."""
    status = await run.client.status()
    routers = run.mesh.router_processes
    running = await run.mesh.total("stagemesh_sessions_active", routers)
    waiting = await run.mesh.total("stagemesh_sessions_waiting", routers)
    journals = await run.mesh.total(
        "stagemesh_stage_journal_bytes", run.mesh.stage_processes, 'part="sessions"'
    )
    files = sum(psutil.Process(p.pid).num_fds() for p in [*routers, *run.mesh.stage_processes])
    return {
        "sessions": sum(item.load.sessions for item in status.replicas),
        "KV bytes": sum(item.load.kv_bytes_used for item in status.replicas),
        "running": int(running or 0),
        "waiting": int(waiting or 0),
        "journal bytes": int(journals or 0),
        "files": files,
    }
