"""F10 and F11: five times as many requests as can be served, and clients that leave at any moment."""

import asyncio
import contextlib
import re
import time
from dataclasses import dataclass

import psutil

from stagemesh import AsyncClient
from stagemesh.errors import DeadlineExceeded, ResourceExhausted, StagemeshError

from .bare import bare_calls
from .load import TOKENS, Place
from .mesh import MODEL, until
from .scenario import Run, quantile, scenario

NEW_TOKENS = 32
DEADLINE_S = 5.0
OVERLOAD = 5.0
ALLOWED_BYTES = 128 * 2**20
WAITED = "could no longer be answered"
CANCELS, CANCELS_SHORT = 10_000, 500


@dataclass(frozen=True)
class Answer:
    """What one request got; `error` is the name of its class, empty when it was answered, and `words` what it said."""

    ended: float
    took_s: float
    error: str = ""
    words: str = ""


async def ask(client: AsyncClient, place: Place, deadline_s: float = 60.0) -> Answer:
    """One request of 32 tokens."""
    began = time.monotonic()
    error = words = ""
    try:
        await client.generate(
            MODEL,
            token_ids=place.prompt,
            max_tokens=NEW_TOKENS,
            temperature=0,
            ignore_eos=True,
            cache=False,
            timeout_s=deadline_s,
        )
    except StagemeshError as wrong:
        error, words = type(wrong).__name__, re.sub(r"\d+", "N", wrong.message)
    ended = time.monotonic()
    return Answer(ended, ended - began, error, words)


@scenario("F10", "five times more requests than can be served, in an open loop", each_seed=False, in_ci=False)
async def overload(run: Run) -> None:
    for_s = 20.0 if run.full else 8.0
    router = run.mesh.router_processes[0]
    async with (
        AsyncClient(run.mesh.grpc_addresses[0], attempts=1) as client,
        contextlib.AsyncExitStack() as held,
    ):
        peak, calm_s = await _peak(run, client, for_s)
        # What the peak's own requests take is no lateness, on a slow machine either.
        deadline_s = max(DEADLINE_S, 3 * calm_s)
        run.say("closed loop, 64 places", f"{peak:.1f} answers/s, p50 {calm_s:.2f} s: the peak")
        before = largest = run.mesh.rss(router)
        answers: list[Answer] = []
        tasks: set[asyncio.Task[None]] = set()

        async def one(number: int) -> None:
            answers.append(await ask(client, Place(number % 64), deadline_s))

        calls = await held.enter_async_context(bare_calls())
        began = time.monotonic()
        number, late_s = 0, 0.0
        while (now := time.monotonic()) < began + for_s:
            while number < (now - began) * peak * OVERLOAD:
                task = asyncio.create_task(one(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            largest = max(largest, run.mesh.rss(router))
            pause = run.rng.expovariate(100)
            before_pause = time.monotonic()
            await asyncio.sleep(pause)
            late_s = max(late_s, time.monotonic() - before_pause - pause)
        over = time.monotonic()
        await held.aclose()
        run.say(
            f"{len(calls)} calls of a service that does nothing",
            ", ".join(f"p{100 * part:.0f} {quantile(calls, part) * 1e3:.0f} ms" for part in (0.5, 0.9, 0.99)),
        )
        run.say(f"offered {number} requests in {over - began:.1f} s", f"{number / (over - began):.0f}/s")
        run.say("the clients' own event loop", f"was late by up to {late_s * 1e3:.0f} ms")
        settled = began + for_s / 4
        served = [answer for answer in answers if not answer.error and settled < answer.ended <= over]
        goodput = len(served) / (over - settled)
        await asyncio.gather(*tasks)
        kinds = {kind: sum(answer.error == kind for answer in answers) for kind in {a.error for a in answers}}
        run.say(
            "what became of them", ", ".join(f"{kind or 'answered'} {n}" for kind, n in sorted(kinds.items()))
        )
        run.at_least("goodput of the peak", goodput / peak, 0.9, patient=True)
        refusals = [answer for answer in answers if answer.error == ResourceExhausted.__name__]
        for words in sorted({answer.words for answer in refusals}):
            took = [answer.took_s for answer in refusals if answer.words == words]
            parts = (f"p{100 * part:.0f} {quantile(took, part) * 1e3:.0f} ms" for part in (0.5, 0.9, 0.99))
            run.say(f"{len(took)} refused: {words}", ", ".join(parts))
        run.holds("some were refused", bool(refusals))
        # Those that were let wait and then would have ended too late have had their wait; they are to be few.
        vain = [answer for answer in refusals if WAITED in answer.words]
        early = [answer.took_s for answer in refusals if WAITED not in answer.words]
        run.within("a refusal took, p99", quantile(early, 0.99), 0.050)
        run.at_most("share of requests that waited in vain", len(vain) / len(answers), 0.05)
        other = set(kinds) - {"", ResourceExhausted.__name__, DeadlineExceeded.__name__}
        run.at_most(
            "answers that are neither served, refused nor late", sum(kinds[kind] for kind in other), 0
        )
        run.at_most(
            "memory that the router grew by", (largest - before) / 2**20, ALLOWED_BYTES / 2**20, "MiB"
        )

        async def recovered() -> bool:
            return (probe := await ask(client, Place(0))).error == "" and probe.took_s < max(2 * calm_s, 0.5)

        await until(recovered, 60)
        run.within("until a request takes as long as before", time.monotonic() - over, 10.0)
    run.outcome.attempted += len(answers)
    async with run.streams(rounds=1):
        pass


async def _peak(run: Run, client: AsyncClient, for_s: float) -> tuple[float, float]:
    """Answers per second, and median seconds of one, with 64 requests always under way."""
    answers: list[Answer] = []
    began = time.monotonic()

    async def place(number: int) -> None:
        while time.monotonic() < began + for_s:
            answers.append(await ask(client, Place(number)))

    await asyncio.gather(*(place(number) for number in range(64)))
    # The first answers found what the heads decide by trying.
    late = [answer for answer in answers if began + for_s / 4 < answer.ended <= began + for_s]
    assert not [answer.error for answer in answers if answer.error], "errors at the peak already"
    return len(late) / (for_s * 3 / 4), quantile([answer.took_s for answer in late], 0.5)


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
