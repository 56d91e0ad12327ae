"""Replicas that keep prompts' blocks, in virtual time. Pure.

What is held, shared and forgotten is decided by the stages' own block table (`partition/blocks.py`), and what is told of it by
their own reports; a block is one of the trace, so that the routers' unit of a token is 32 of its tokens. Passes are a
model: one of decode steps takes a fixed time and a little for each session, and a chunk of a prompt adds its tokens' time.
Prompts are computed one after the other, beside everybody's decode steps; a session that finds no room waits for some.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stagemesh.services.stage.partition.blocks import Blocks  # type: ignore[import-not-found]
from stagemesh.services.stage.partition.holdings import parts  # type: ignore[import-not-found]
from stagemesh.services.stage.pass_costs import PassCosts  # type: ignore[import-not-found]

from bench.prefix_trace import BLOCK_TOKENS, Recorded
from stagemesh.prefix import BLOCK
from stagemesh.v1.stage_pb2 import PrefixReport, ReplicaLoad

UNIT = BLOCK_TOKENS // BLOCK
"""Tokens of the trace that count as one here."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated. Times in seconds, room in tokens of the trace."""

    replicas: int = 8
    room: int = 400_000
    token_s: float = 125e-6
    pass_s: float = 0.02
    row_s: float = 0.0002
    chunk: int = 2048
    routers: int = 2
    period_s: float = 0.25
    delay_s: float = 0.005


@dataclass(slots=True, eq=False)
class Job:
    """A request on its replica; moments are seconds, `reused` and `left` tokens."""

    asked: Recorded
    router: int
    names: list[bytes]
    reused: int = 0
    left: int = 0
    blocks: list[int] = field(default_factory=list)
    named: int = 0
    began: float = -1.0
    first: float = -1.0


def name_of(number: int) -> bytes:
    """A block's digest; what travels of it are its first eight bytes."""
    return number.to_bytes(8) + bytes(8)


def full_names(asked: Recorded) -> list[bytes]:
    """The digests of a prompt's full blocks."""
    return [name_of(number) for number in asked.full]


def usable(asked: Recorded) -> int:
    """Blocks of a prompt that it may be spared: its last token is always computed."""
    return (asked.prompt - 1) // BLOCK_TOKENS


class Replica:
    """One replica: its blocks, the prompts that wait, and the sessions that decode."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name = name
        self.blocks = Blocks(setting.room // BLOCK_TOKENS)
        self.version = 0
        self._setting = setting
        self._costs = PassCosts()
        self._step_ms = 0.0
        self._without_room: deque[Job] = deque()
        self._prompts: deque[Job] = deque()
        self._decoding: list[tuple[int, int, Job]] = []
        self._passes = 0
        self._number = 0
        # The pass that runs: when it began, what one takes, of how many in a row, and its part of prompts.
        self._pass: tuple[float, float, int, list[tuple[Job, int]]] | None = None
        self._told: int | None = None

    # ---- what the routers see ----

    def load(self) -> ReplicaLoad:
        """As a stage tells it."""
        waiting = sum(job.left for job in self._prompts) + sum(job.asked.prompt for job in self._without_room)
        return ReplicaLoad(
            replica_id=self.name,
            sessions=len(self._prompts) + len(self._decoding) + len(self._without_room),
            step_ms=self._step_ms,
            prompt_tokens=waiting // UNIT,
            prompt_token_us=self._costs.token_us,
            decode_ms=self._costs.decode_us / 1000,
            kv_tokens_free=self.blocks.free * BLOCK,
        )

    def report(self, load: ReplicaLoad) -> list[PrefixReport]:
        """What changed since it was last asked; nothing when nothing did."""
        if self._told == self.blocks.holdings.sequence:
            return []
        found = self.blocks.holdings.report(self._told)
        self._told = found.sequence
        messages = list(parts(found))
        messages[-1].load.CopyFrom(load)
        return messages

    @property
    def busy(self) -> bool:
        """Whether it has sessions."""
        return bool(self._prompts or self._decoding or self._without_room)

    # ---- what happens there ----

    def arrive(self, job: Job, now: float) -> float | None:
        """A session begins; when its pass now ends, if that is another moment than before."""
        self._without_room.append(job)
        self._take_in()
        if self._pass is None:
            return self._begin(now)
        began, each, count, chunks = self._pass
        if count > 1:  # the passes that were to come in a row are cut short, so that the prompt has its turn
            done = min(count, int((now - began) / each) + 1)
            self._pass = began, each, done, chunks
            self.version += 1
            return began + done * each
        return None

    def end(self, now: float) -> tuple[float | None, list[Job], list[Job]]:
        """The pass is over: when the next one ends, who got a first token, and whose session is over."""
        assert self._pass is not None
        _, each, count, chunks = self._pass
        self._pass = None
        self._passes += count
        self._costs.passed(each * 1e6, sum(tokens for _, tokens in chunks) / UNIT)
        self._step_ms += 0.2 * (each * 1000 - self._step_ms) if self._step_ms else each * 1000
        over = []
        while self._decoding and self._decoding[0][0] <= self._passes:
            over.append(heapq.heappop(self._decoding)[2])
        first = []
        for job, tokens in chunks:
            self._compute(job, tokens)
            if not job.left:
                job.first = now
                first.append(job)
                self._prompts.popleft()
                self._number += 1
                if job.asked.answer > 1:
                    ends = self._passes + job.asked.answer - 1
                    heapq.heappush(self._decoding, (ends, self._number, job))
                else:
                    over.append(job)
        for job in over:
            self.blocks.release(job.blocks)
        if over:
            self._take_in()
        return self._begin(now), first, over

    def _compute(self, job: Job, tokens: int) -> None:
        job.left -= tokens
        full = min((job.asked.prompt - job.left) // BLOCK_TOKENS, len(job.names))
        for index in range(job.named, full):
            self.blocks.name(job.blocks[index], job.names[index])
        job.named = max(job.named, full)

    def _take_in(self) -> None:
        """Give those that wait their room, in order, with what is there of their prompts."""
        while self._without_room:
            job = self._without_room[0]
            known = self.blocks.known(job.names[: usable(job.asked)])
            needed = -(-(job.asked.prompt + job.asked.answer) // BLOCK_TOKENS)
            taken = self.blocks.take(needed, job.names[:known])
            if taken is None:
                return
            self._without_room.popleft()
            job.blocks, job.named, job.reused = taken, known, known * BLOCK_TOKENS
            job.left = job.asked.prompt - job.reused
            self._prompts.append(job)

    def _begin(self, now: float) -> float | None:
        if not self._prompts and not self._decoding:
            return None
        chunks: list[tuple[Job, int]] = []
        budget = self._setting.chunk
        for job in self._prompts:
            if not budget:
                break
            if job.began < 0:
                job.began = now
            tokens = min(budget, job.left)
            chunks.append((job, tokens))
            budget -= tokens
        prompt_s = (self._setting.chunk - budget) * self._setting.token_s
        each = self._setting.pass_s + len(self._decoding) * self._setting.row_s + prompt_s
        count = 1 if chunks else self._decoding[0][0] - self._passes
        self._pass = now, each, count, chunks
        self.version += 1
        return now + count * each


Choose = Callable[[Recorded, list[bytes], float, int], int]
"""Request, digests of its blocks, now, which router: to the index of a replica."""


class Told:
    """What the world tells the routers, by name of the replica; each may be left as it is."""

    def first(self, router: int, replica: str, asked: Recorded) -> None:
        """The first token of a request of the router's."""

    def load(self, router: int, load: ReplicaLoad, now: float) -> None:
        """A load came with a session's event."""

    def report(self, report: PrefixReport, now: float) -> None:
        """A report of blocks came, to every router."""

    def over(self, router: int, replica: str, now: float) -> None:
        """A session of the router's ended."""


class World:
    """Replicas, and a trace that is played to them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.replicas = [Replica(f"r{index}", setting) for index in range(setting.replicas)]

    def play(self, trace: list[Recorded], choose: Choose, told: Told) -> list[Job]:
        """Every request of the trace with what became of it, in the order of their first tokens."""
        setting, done = self.setting, []
        events: list[tuple[float, int, Callable[[float], None]]] = []
        count = 0

        def at(moment: float, what: Callable[[float], None]) -> None:
            nonlocal count
            count += 1
            heapq.heappush(events, (moment, count, what))

        def passes(index: int, ends: float | None) -> None:
            if ends is not None:
                version = self.replicas[index].version
                at(ends, lambda now: ended(index, version, now))

        def ended(index: int, version: int, now: float) -> None:
            replica = self.replicas[index]
            if version != replica.version:
                return
            ends, first, over = replica.end(now)
            passes(index, ends)
            if first or over:
                load = replica.load()
                for job in first:
                    done.append(job)
                    at(now + setting.delay_s, lambda _, j=job: told.first(j.router, replica.name, j.asked))  # type: ignore[misc]
                    at(now + setting.delay_s, lambda then, r=job.router: told.load(r, load, then))  # type: ignore[misc]
                for job in over:
                    at(now + setting.delay_s, lambda then, r=job.router: told.over(r, replica.name, then))  # type: ignore[misc]

        def arrives(number: int, now: float) -> None:
            asked = trace[number]
            router = number % setting.routers
            names = full_names(asked)
            index = choose(asked, names, now, router)
            passes(index, self.replicas[index].arrive(Job(asked, router, names), now))
            if number + 1 < len(trace):
                at(max(trace[number + 1].at, now), lambda then: arrives(number + 1, then))

        def reports(now: float) -> None:
            for replica in self.replicas:
                load = replica.load()
                if replica.busy:
                    for router in range(setting.routers):
                        told.load(router, load, now)
                for message in replica.report(load):
                    told.report(message, now)
            if len(done) < len(trace):
                at(now + setting.period_s, reports)

        at(trace[0].at, lambda now: arrives(0, now))
        at(trace[0].at, reports)
        while len(done) < len(trace):
            moment, _, what = heapq.heappop(events)
            what(moment)
        return done
