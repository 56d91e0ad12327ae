"""A replica in virtual time: what computes, what waits. Pure.

A prompt is computed by one stage after the other, first come first served. Then the session decodes: of the `b` sessions that a
stage has, `min(b, P)` micro-batches are under way in a pipeline of P stages, and a pass of one takes the time to read the weights, or to
compute its rows. A token takes the sum of its passes, or, where one stage is the bottleneck, that stage's passes for all
micro-batches; what that is longer by is waiting. The pace of a session is that of its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stagemesh.v1.registry_pb2 import NodeRecord, ReplicaRecord

OVERHEAD_S = 0.0005
SLOTS = 16
"""Sessions that a replica's KV memory holds."""


@dataclass(slots=True)
class Replica:
    """One loaded partition; `free_at` is when the prompts that it has are computed."""

    record: ReplicaRecord
    stage: int
    read_s: float
    row_s: float
    active: int = 0
    free_at: float = 0.0
    ready: bool = False
    leaving: bool = False


def replica(record: ReplicaRecord, node: NodeRecord, gigabytes: float) -> Replica:
    """A replica of a partition of so many GB (BF16) on a node."""
    # A token takes two operations for each parameter of two bytes.
    return Replica(record, record.stage, gigabytes / node.memory_gbps + OVERHEAD_S, gigabytes / node.gflops)


@dataclass(slots=True)
class Tally:
    """What one stage of a model did since the last look: steps, seconds that they waited, seconds of prompts; share of time by decoding."""

    steps: float = 0.0
    waited_s: float = 0.0
    prompts_s: float = 0.0
    decoding: float = 0.0
    queue_ms: float = 0.0


@dataclass(slots=True)
class Pace:
    """How a session decodes: seconds a token, and what share of its time each stage computes for it."""

    token_s: float
    shares: list[float] = field(default_factory=list)
    passes_s: list[float] = field(default_factory=list)
    waits_s: float = 0.0
    slowest: int = 0


def prompt(
    route: Sequence[Replica], tokens: int, now: float, tallies: Sequence[Tally]
) -> tuple[float, float]:
    """The prompt passes the stages: when its first token is there, and for how long it waited."""
    at = now
    waited = 0.0
    for each, tally in zip(route, tallies, strict=True):
        start = max(at, each.free_at)
        work = each.read_s + tokens * each.row_s
        each.free_at = start + work
        waited += start - at
        tally.steps += 1
        tally.waited_s += start - at
        tally.prompts_s += work
        at = each.free_at
    return at, waited


def pace(route: Sequence[Replica]) -> Pace:
    """How a session decodes that joins those which are there (it is counted in `active`)."""
    stages = len(route)
    passes: list[float] = []
    shares: list[float] = []
    most, slowest = 0.0, 0
    for nth, each in enumerate(route):
        batches = min(each.active, stages)
        rows = each.active / batches
        took = max(each.read_s, rows * each.row_s + OVERHEAD_S)
        passes.append(took)
        shares.append(took / rows)
        if batches * took > most:
            most, slowest = batches * took, nth
    total = sum(passes)
    token_s = max(total, most)
    return Pace(token_s, [each / token_s for each in shares], passes, token_s - total, slowest)
