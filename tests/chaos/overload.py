"""F10: five times as many requests as can be served.

Goodput is a ratio of two measurements, and this machine may be half as fast for ten seconds because of others. So both are
taken several times in turns, each overload is compared with the peak right before it, and the median of these ratios counts;
what a fixed piece of work takes meanwhile (`speed.py`) is told beside them.
"""

import asyncio
import contextlib
import re
import statistics
import time
from dataclasses import dataclass, field

from stagemesh import AsyncClient
from stagemesh.errors import DeadlineExceeded, ResourceExhausted, StagemeshError

from .bare import bare_calls
from .load import Place
from .mesh import MODEL, until
from .scenario import Run, quantile, scenario
from .speed import measured_speed

NEW_TOKENS = 32
DEADLINE_S = 5.0
OVERLOAD = 5.0
# Seconds of a closed loop and of the overload after it, and how often both follow one another.
PEAK_S, OVERLOAD_S, TURNS = 12.0, 16.0, 3
SHORT_S = 8.0
# Of each, the part at its beginning that does not count: what the heads decide by trying, and admission by measuring.
SETTLING = 1 / 4
ALLOWED_BYTES = 128 * 2**20
WAITED = "could no longer be answered"


@dataclass(frozen=True)
class Answer:
    """What one request got; `error` is the name of its class, empty when it was answered, and `words` what it said."""

    ended: float
    took_s: float
    error: str = ""
    words: str = ""


@dataclass
class Overload:
    """What was seen of it, of all turns."""

    answers: list[Answer] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    largest_bytes: int = 0


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
    seen = Overload()
    before = run.mesh.rss(run.mesh.router_processes[0])
    async with AsyncClient(run.mesh.grpc_addresses[0], attempts=1) as client:
        for _ in range(TURNS if run.full else 1):
            await _turn(run, client, seen)
    answers = seen.answers
    kinds = {kind: sum(answer.error == kind for answer in answers) for kind in {a.error for a in answers}}
    run.say(
        "what became of all of them",
        ", ".join(f"{kind or 'answered'} {n}" for kind, n in sorted(kinds.items())),
    )
    run.say("goodput of the peak, in turns", ", ".join(f"{ratio:.2f}" for ratio in seen.ratios))
    run.at_least("goodput of the peak, median", statistics.median(seen.ratios), 0.9, patient=True)
    refusals = [answer for answer in answers if answer.error == ResourceExhausted.__name__]
    for words in sorted({answer.words for answer in refusals}):
        took = [answer.took_s for answer in refusals if answer.words == words]
        run.say(f"{len(took)} refused: {words}", _quantiles(took))
    run.holds("some were refused", bool(refusals))
    # Those that were let wait and then would have ended too late have had their wait; they are to be few.
    vain = [answer for answer in refusals if WAITED in answer.words]
    early = [answer.took_s for answer in refusals if WAITED not in answer.words]
    run.within("a refusal took, p99", quantile(early, 0.99), 0.050)
    run.at_most("share of requests that waited in vain", len(vain) / len(answers), 0.05)
    other = set(kinds) - {"", ResourceExhausted.__name__, DeadlineExceeded.__name__}
    run.at_most("answers that are neither served, refused nor late", sum(kinds[kind] for kind in other), 0)
    grown = (seen.largest_bytes - before) / 2**20
    run.at_most("memory that the router grew by", grown, ALLOWED_BYTES / 2**20, "MiB")
    run.within("until a request takes as long as before", max(seen.recovered_s), 10.0)
    run.outcome.attempted += len(answers)
    async with run.streams(rounds=1):
        pass


async def _turn(run: Run, client: AsyncClient, seen: Overload) -> None:
    """The peak, the overload, and until it is over."""
    router = run.mesh.router_processes[0]
    async with measured_speed() as calm:
        peak, calm_s = await _peak(client, PEAK_S if run.full else SHORT_S)
    run.say("closed loop, 64 places", f"{peak:.1f} answers/s, p50 {calm_s:.2f} s: the peak")
    # What the peak's own requests take is no lateness, on a slow machine either.
    deadline_s = max(DEADLINE_S, 3 * calm_s)
    for_s = OVERLOAD_S if run.full else SHORT_S
    answers: list[Answer] = []
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int) -> None:
        answers.append(await ask(client, Place(number % 64), deadline_s))

    async with contextlib.AsyncExitStack() as held:
        calls = await held.enter_async_context(bare_calls())
        speed = await held.enter_async_context(measured_speed())
        began = time.monotonic()
        number, late_s = 0, 0.0
        while (now := time.monotonic()) < began + for_s:
            while number < (now - began) * peak * OVERLOAD:
                task = asyncio.create_task(one(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            seen.largest_bytes = max(seen.largest_bytes, run.mesh.rss(router))
            pause = run.rng.expovariate(100)
            before_pause = time.monotonic()
            await asyncio.sleep(pause)
            late_s = max(late_s, time.monotonic() - before_pause - pause)
        over = time.monotonic()
    served_per_s = _rate(answers, began, over)
    seen.ratios.append(served_per_s / peak)
    run.say(
        f"offered {number} requests in {over - began:.1f} s",
        f"{number / (over - began):.0f}/s; {served_per_s:.1f} answers/s, {served_per_s / peak:.2f} of the peak",
    )
    run.say(
        "the same work took, of a CPU's time", f"{_quantiles(calm)} before; {_quantiles(speed)} meanwhile"
    )
    run.say(f"{len(calls)} calls of a service that does nothing", _quantiles(calls))
    run.say("the clients' own event loop", f"was late by up to {late_s * 1e3:.0f} ms")
    await asyncio.gather(*tasks)
    seen.answers += answers

    async def recovered() -> bool:
        return (probe := await ask(client, Place(0))).error == "" and probe.took_s < max(2 * calm_s, 0.5)

    await until(recovered, 60)
    seen.recovered_s.append(time.monotonic() - over)


async def _peak(client: AsyncClient, for_s: float) -> tuple[float, float]:
    """Answers per second, and median seconds of one, with 64 requests always under way."""
    answers: list[Answer] = []
    began = time.monotonic()

    async def place(number: int) -> None:
        while time.monotonic() < began + for_s:
            answers.append(await ask(client, Place(number)))

    await asyncio.gather(*(place(number) for number in range(64)))
    assert not [answer.error for answer in answers if answer.error], "errors at the peak already"
    late = [answer.took_s for answer in answers if began + SETTLING * for_s < answer.ended <= began + for_s]
    return _rate(answers, began, began + for_s), quantile(late, 0.5)


def _rate(answers: list[Answer], began: float, over: float) -> float:
    """Requests answered per second, but for those of the beginning."""
    settled = began + SETTLING * (over - began)
    return sum(not answer.error and settled < answer.ended <= over for answer in answers) / (over - settled)


def _quantiles(took_s: list[float]) -> str:
    return ", ".join(f"p{100 * part:.0f} {quantile(took_s, part) * 1e3:.3g} ms" for part in (0.5, 0.9, 0.99))
