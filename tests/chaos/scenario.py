"""A scenario: one fault of the table, what is promised about it, and a transcript of what happened."""

import asyncio
import math
import random
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stagemesh import AsyncClient
from stagemesh.local.processes import ChildProcess

from . import load as loads
from .load import Load, Place, Stream
from .mesh import MODEL, ChaosMesh, Replica, until

# On a machine that others use too a bound in seconds is this much wider; counts never are.
PATIENCE = 5.0


class BrokenPromise(AssertionError):
    """What a scenario promised and did not keep, with its transcript."""


@dataclass(frozen=True)
class Promise:
    """One line of a table row: what was measured, and the bound that it must not exceed."""

    text: str
    measured: float
    bound: float
    unit: str
    kept: bool
    fact: bool = False
    least: bool = False


@dataclass
class Outcome:
    """What one run of a scenario gave."""

    fault: str
    title: str
    seed: int
    name: str = ""
    attempted: int = 0
    failed: int = 0
    wrong: int = 0
    stalls_s: list[float] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    took_s: float = 0.0
    error: str = ""

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not self.error and all(promise.kept for promise in self.promises)


@dataclass(frozen=True)
class Baseline:
    """Of the mesh without a fault: each place's tokens, and how long one prefill of a whole sequence takes."""

    golden: dict[Place, list[int]]
    prefill_s: float

    @property
    def places(self) -> list[Place]:
        """All 64, in their order."""
        return sorted(self.golden, key=lambda place: place.number)


class Run:
    """What a scenario works with. Everything random comes from `rng`, which the printed seed makes."""

    def __init__(
        self, outcome: Outcome, mesh: ChaosMesh, client: AsyncClient, calm: Baseline, *, full: bool
    ) -> None:
        self.outcome = outcome
        self.mesh = mesh
        self.client = client
        self.calm = calm
        self.full = full
        self.patience = 1.0 if full else PATIENCE
        self.rng = random.Random(f"{outcome.fault}-{outcome.seed}")
        self._began = time.monotonic()
        self._stopped: set[int] = set()
        # When the fault came, in monotonic seconds; 0 until then.
        self.struck_at = 0.0

    # ---- transcript and promises ----

    def say(self, event: str, effect: str = "") -> None:
        """A line: time, event, effect."""
        line = f"{time.monotonic() - self._began:7.2f} s  {event:<58}  {effect}".rstrip()
        self.outcome.transcript.append(line)
        print(line, flush=True)

    def within(self, text: str, measured_s: float, bound_s: float) -> None:
        """Promise a time, in seconds."""
        self._promise(text, measured_s, bound_s, bound_s * self.patience, "s")

    def at_most(self, text: str, measured: float, bound: float, unit: str = "") -> None:
        """Promise a count or a share, which no slow machine excuses."""
        self._promise(text, measured, bound, bound, unit)

    def at_least(self, text: str, measured: float, bound: float, *, patient: bool = False) -> None:
        """The same from below; `patient` where a slow machine does excuse it."""
        limit = bound / self.patience if patient else bound
        self._promise(text, measured, bound, limit, "", least=True)

    def holds(self, text: str, fact: bool) -> None:
        """Promise a fact."""
        self.outcome.promises.append(Promise(text, float(not fact), 0, "", fact, fact=True))
        self.say(f"{'kept' if fact else 'BROKEN'}: {text}")

    def _promise(
        self, text: str, measured: float, bound: float, limit: float, unit: str, *, least: bool = False
    ) -> None:
        kept = measured >= limit if least else measured <= limit
        self.outcome.promises.append(Promise(text, measured, bound, unit, bool(kept), least=least))
        word = "kept" if kept else "BROKEN"
        self.say(f"{word}: {text}", f"{measured:.4g} {unit} (bound {bound:.4g})".replace("  ", " "))

    def untested(self, what: str) -> None:
        """Say what could not be tried on this machine."""
        self.outcome.untested.append(what)
        self.say(f"not tested here: {what}")

    # ---- load ----

    @asynccontextmanager
    async def streams(
        self,
        *,
        rounds: int | None = None,
        clients: Sequence[AsyncClient] = (),
        cache: bool = False,
        tokens: int = loads.TOKENS,
    ) -> AsyncIterator[Load]:
        """64 streams while the body runs. At the end: none failed, and every token is the golden one."""
        clients = clients or [self.client]
        async with loads.load(
            clients, MODEL, self.calm.places, rounds=rounds, cache=cache, tokens=tokens
        ) as seen:
            yield seen
        self.judge(seen.streams)

    def judge(self, streams: Sequence[Stream]) -> None:
        """Count failures and differing answers, and promise that there are none."""
        failed = [stream for stream in streams if stream.error is not None]
        whole = [stream for stream in streams if stream.error is None]
        wrong = [stream for stream in whole if stream.tokens != self._wanted(stream)]
        # What was over before the fault is not of its making.
        stalls = [stall for stream in whole if (stall := stream.stall_s(self.struck_at)) is not None]
        self.outcome.attempted += len(streams)
        self.outcome.failed += len(failed)
        self.outcome.wrong += len(wrong)
        self.outcome.stalls_s += stalls
        self.say(
            f"{len(streams)} streams of {streams[0].limit if streams else 0} tokens ended",
            f"longest pause p50 {quantile(stalls, 0.5):.2f} s, p99 {quantile(stalls, 0.99):.2f} s",
        )
        for stream in failed[:3]:
            self.say(
                f"  stream {stream.place.number} failed after {len(stream.tokens)} tokens", str(stream.error)
            )
        for stream in wrong[:3]:
            self.say(f"  stream {stream.place.number} differs", _difference(stream, self._wanted(stream)))
        self.at_most("streams that failed", len(failed), 0)
        self.at_most("streams with a wrong token", len(wrong), 0)

    def _wanted(self, stream: Stream) -> list[int]:
        return self.calm.golden[stream.place][: stream.limit]

    def share(self, low: float, high: float) -> float:
        """A random part of a round."""
        return self.rng.uniform(low, high)

    # ---- targets ----

    async def replica(
        self, stage: int | None = None, needs: Callable[[ChaosMesh, Replica], object] | None = None
    ) -> Replica:
        """A random ready replica, of a random stage unless one is named."""
        found = sorted(await self.mesh.hosted(self.client), key=lambda each: (each.stage, each.process.name))
        if needs is not None:
            found = [each for each in found if needs(self.mesh, each)]
        elif stage is None:
            stage = self.rng.randrange(self.mesh.stages)
        return self.rng.choice([each for each in found if stage in (None, each.stage)])

    def signal(self, process: ChildProcess, number: signal.Signals, what: str = "") -> None:
        """Send a signal; what is stopped is continued at the end of the scenario."""
        self.strike()
        process.send_signal(number)
        if number == signal.SIGSTOP:
            self._stopped.add(process.pid)
        self.say(f"{number.name} {what or process.name}")

    def strike(self) -> None:
        """The fault comes now; only the first call counts."""
        self.struck_at = self.struck_at or time.monotonic()

    def kill(self, replica: Replica) -> None:
        """SIGKILL a replica's process."""
        self.signal(replica.process, signal.SIGKILL, str(replica))

    async def routed(self, replica_ids: Sequence[str]) -> float:
        """Sessions that routers have sent to these replicas so far."""
        routers = self.mesh.router_processes
        counts = [
            await self.mesh.total("stagemesh_route_sessions_total", routers, f'replica="{each}"')
            for each in replica_ids
        ]
        return sum(count or 0.0 for count in counts)

    async def whole(self, within_s: float = 60.0) -> float:
        """Wait until every replica is ready again; the seconds it took."""
        took = await until(lambda: self.mesh.whole(self.client), within_s, 0.2)
        self.say("every replica is ready", f"after {took:.1f} s")
        return took

    def release(self) -> None:
        """Continue what the scenario left stopped."""
        for process in self.mesh.processes:
            if process.pid in self._stopped:
                process.send_signal(signal.SIGCONT)


def _difference(stream: Stream, wanted: Sequence[int]) -> str:
    at = next(
        (index for index, pair in enumerate(zip(stream.tokens, wanted, strict=False)) if pair[0] != pair[1]),
        min(len(stream.tokens), len(wanted)),
    )
    return f"at token {at}: {stream.tokens[at : at + 3]}, not {wanted[at : at + 3]}, of {len(stream.tokens)}"


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that `part` of all do not exceed; 0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


Body = Callable[[Run], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """A fault of the table. `each_seed`: it has random moments or targets, so it is run with every seed.

    `needs` says which replicas it can be done to; a mesh without one is built anew.
    """

    fault: str
    title: str
    body: Body
    each_seed: bool = True
    in_ci: bool = True
    needs: Callable[[ChaosMesh, Replica], object] | None = None

    @property
    def name(self) -> str:
        """For file names and test ids."""
        return f"{self.fault}-{self.body.__name__}"


ALL: list[Scenario] = []


def scenario(
    fault: str,
    title: str,
    *,
    each_seed: bool = True,
    in_ci: bool = True,
    needs: Callable[[ChaosMesh, Replica], object] | None = None,
) -> Callable[[Body], Body]:
    """Put a scenario into the suite."""

    def put(body: Body) -> Body:
        ALL.append(Scenario(fault, title, body, each_seed, in_ci, needs))
        return body

    return put


async def perform(
    chosen: Scenario, seed: int, mesh: ChaosMesh, client: AsyncClient, calm: Baseline, *, full: bool
) -> Outcome:
    """Run one scenario; its outcome, whatever happens in it. Promises that are not kept are in there."""
    outcome = Outcome(chosen.fault, chosen.title, seed, chosen.body.__name__)
    run = Run(outcome, mesh, client, calm, full=full)
    began = time.monotonic()
    print(f"\n{chosen.fault} {chosen.title} (seed {seed})", flush=True)
    try:
        async with asyncio.timeout(600 if full else 150):
            await chosen.body(run)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
        run.say("the scenario itself ended early", outcome.error)
        outcome.evidence += traceback.format_exc().splitlines()[-6:]
    finally:
        run.release()
        outcome.took_s = time.monotonic() - began
    return outcome
