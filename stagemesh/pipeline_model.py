"""What a pipeline of stages can do at best, from a handful of measured times. Pure.

Micro-batches go round a ring: stage 0, 1, .. P-1, back to stage 0. A stage computes one at a time; what lies
between two stages (encoding, network, waking up) delays each on its own. With constant times that is a timed event
graph, whose period is its greatest cycle mean (Baccelli, Cohen, Olsder, Quadrat, "Synchronization and
Linearity", 1992; Denning and Buzen's operational bounds of 1978 say the same for a closed network).
There are two kinds of cycles, so that with `m` batches in flight a token takes

    step = max( sum over stages of (pass + hop),  max over stages of m * pass / replicas )

The first is the ring: few batches, each goes round without waiting, and stages idle. The second is the slowest
stage: it never idles, and batches wait for it. A pass takes `fixed_s + rows * row_s`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, in seconds: a pass of no rows, each row more, and the way on to the next stage.

    `hop_s` is what passes between the end of a pass here and its begin on the next stage when nothing else is
    there (after the last stage: on stage 0). `replicas` share the stage's batches evenly.
    """

    fixed_s: float
    row_s: float
    hop_s: float = 0.0
    replicas: int = 1

    def pass_s(self, rows: float) -> float:
        """Seconds that a pass of so many rows takes."""
        return self.fixed_s + self.row_s * rows


@dataclass(frozen=True, slots=True)
class Prediction:
    """One token of each of `streams` sessions.

    Attributes:
        streams: sessions that decode together.
        batches: micro-batches that they are spread over, of all heads.
        rows: sessions in each.
        step_s: seconds between two tokens of a session.
        bottleneck: the stage that has most to do.
        bound: "stage" when that stage is never idle, "ring" when every stage waits for batches to come round.
        bubbles: part of the time that a replica of each stage has nothing to compute.
    """

    streams: int
    batches: int
    rows: float
    step_s: float
    bottleneck: int
    bound: str
    bubbles: tuple[float, ...]

    @property
    def tokens_per_s(self) -> float:
        """Of all sessions together."""
        return self.streams / self.step_s


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the pipeline (or of its use), and the tokens per second that it is predicted to give."""

    what: str
    tokens_per_s: float


def batches_of(streams: int, stages: int, heads: int = 1) -> int:
    """Micro-batches in flight: each head spreads its sessions over as many as there are stages."""
    heads = min(heads, streams)
    total = 0
    for head in range(heads):
        own = streams // heads + (head < streams % heads)
        total += ceil(own / ceil(own / stages))
    return total


def predict(stages: Sequence[StageCost], streams: int) -> Prediction:
    """Time between tokens with so many sessions, all decoding.

    Raises:
        ValueError: no stage, no session, or stages that take no time at all.
    """
    if not stages or streams < 1:
        raise ValueError("a prediction needs a stage and a session")
    batches = batches_of(streams, len(stages), stages[0].replicas)
    rows = streams / batches
    ring = sum(stage.pass_s(rows) + stage.hop_s for stage in stages)
    # What each replica of a stage computes between two tokens of a session.
    work = [stage.pass_s(rows) * batches / min(stage.replicas, batches) for stage in stages]
    step = max(ring, *work)
    if step <= 0:
        raise ValueError("stages that take no time predict nothing")
    bottleneck = max(range(len(stages)), key=lambda index: work[index])
    bubbles = tuple(max(0.0, 1 - seconds / step) for seconds in work)
    bound = "stage" if bubbles[bottleneck] < 1e-9 else "ring"
    return Prediction(streams, batches, rows, step, bottleneck, bound, bubbles)


def fit_pass(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fixed seconds and seconds per row from measured (rows, seconds), by least squares; neither is negative.

    Points within a hundredth of the same number of rows say nothing of a row's cost: then all of it is fixed.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("nothing was measured")
    count = len(points)
    mean_rows = sum(rows for rows, _ in points) / count
    mean = sum(seconds for _, seconds in points) / count
    spread = sum((rows - mean_rows) ** 2 for rows, _ in points)
    if spread <= (0.01 * mean_rows) ** 2 * count:
        return mean, 0.0
    row = sum((rows - mean_rows) * (seconds - mean) for rows, seconds in points) / spread
    if row <= 0:
        return mean, 0.0
    fixed = mean - row * mean_rows
    if fixed >= 0:
        return fixed, row
    return 0.0, sum(rows * seconds for rows, seconds in points) / sum(rows**2 for rows, _ in points)


def changes(stages: Sequence[StageCost], streams: int) -> list[Change]:
    """What could be changed, best first. Another replica is taken to have a machine of its own."""
    now = predict(stages, streams)
    slow = now.bottleneck
    more = list(stages)
    more[slow] = replace(stages[slow], replicas=stages[slow].replicas + 1)
    even = [
        replace(
            stage,
            fixed_s=sum(one.fixed_s for one in stages) / len(stages),
            row_s=sum(one.row_s for one in stages) / len(stages),
        )
        for stage in stages
    ]
    found = [
        Change(f"one more replica of stage {slow}", predict(more, streams).tokens_per_s),
        Change("hops that take half as long", predict(_shorter(stages), streams).tokens_per_s),
        Change(f"{2 * streams} streams instead of {streams}", predict(stages, 2 * streams).tokens_per_s),
    ]
    if len(stages) > 1:
        found.append(
            Change("a cut that gives every stage the same work", predict(even, streams).tokens_per_s)
        )
    return sorted(found, key=lambda change: -change.tokens_per_s)


def _shorter(stages: Sequence[StageCost]) -> list[StageCost]:
    return [replace(stage, hop_s=stage.hop_s / 2) for stage in stages]
