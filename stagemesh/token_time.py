"""Where a token's time went, from what clients of a mesh saw and what its stages told them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from stagemesh.pipeline_model import StageCost, batches_of, fit_pass

if TYPE_CHECKING:
    from stagemesh.client.results import StageTime


@dataclass(frozen=True, slots=True)
class Stream:
    """One generation as its client saw it.

    Attributes:
        started: when it was sent, in seconds of one clock.
        times: when each token came.
        together: how many tokens came with the first one.
        first: sums per stage as told with the first token.
        last: the same, as told with the last token.
    """

    started: float
    times: tuple[float, ...]
    together: int
    first: "tuple[StageTime, ...]"
    last: "tuple[StageTime, ...]"


@dataclass(frozen=True, slots=True)
class StagePart:
    """A stage's part of the time between two tokens of a session, in seconds.

    Attributes:
        stage: its position.
        replicas: how many of its replicas took part.
        queue_s: waiting for the compute thread.
        compute_s: computing.
        encode_s: making frames of the result.
        network_s: on the way here from the stage before.
        idle_s: how long a replica had nothing to compute between two tokens. Others' passes fill the rest of
            that time, so it overlaps the parts above and adds to nothing.
        rows: sessions in a pass; 0 when the stage did not say.
    """

    stage: int
    replicas: int
    queue_s: float
    compute_s: float
    encode_s: float
    network_s: float
    idle_s: float
    rows: float

    @property
    def path_s(self) -> float:
        """What it adds to the time between two tokens."""
        return self.queue_s + self.compute_s + self.encode_s + self.network_s


@dataclass(frozen=True, slots=True)
class Load:
    """So many streams at once, in several rounds.

    Attributes:
        streams: how many.
        rates: tokens per second of all of them while all of them decode, per round.
        first_token_s: seconds from sending to the first token, of each stream.
        gaps: seconds between tokens, all of them.
        step_s: their mean.
        stages: where that mean went.
    """

    streams: int
    rates: tuple[float, ...]
    first_token_s: tuple[float, ...]
    gaps: tuple[float, ...]
    step_s: float
    stages: tuple[StagePart, ...]

    @property
    def rate(self) -> float:
        """The middle one of the rounds."""
        return float(median(self.rates))

    @property
    def rest_s(self) -> float:
        """What no stage accounts for: the last stage's result on its way to the head, and waiting there."""
        return self.step_s - sum(part.path_s for part in self.stages)


def load_of(rounds: Sequence[Sequence[Stream]]) -> Load:
    """Sum up the rounds of one number of streams.

    Raises:
        ValueError: no stream has a token after its first ones, or no stage said where the time went.
    """
    streams = [stream for streams in rounds for stream in streams]
    gaps = [b - a for stream in streams for a, b in zip(stream.times, stream.times[1:], strict=False)]
    # What came with the first token was under way before it: the sums told with it hold its steps.
    decoding = sum(stream.times[-1] - stream.times[0] for stream in streams)
    tokens = sum(len(stream.times) - stream.together for stream in streams)
    if tokens <= 0 or decoding <= 0:
        raise ValueError("too few tokens to see the time between them: generate more")
    stages = _parts(rounds)
    if not stages:
        raise ValueError("no stage said where the time went")
    return Load(
        streams=max(len(streams) for streams in rounds),
        rates=tuple(rate_of(streams) for streams in rounds),
        first_token_s=tuple(stream.times[0] - stream.started for stream in streams),
        gaps=tuple(gaps),
        step_s=decoding / tokens,
        stages=stages,
    )


def rate_of(streams: Sequence[Stream]) -> float:
    """Tokens per second of all streams together, while all of them decode.

    From the last stream's first token to the first stream's last one; where there is no such time, from the first
    token of any to the last of any.
    """
    begin = max(stream.times[0] for stream in streams)
    end = min(stream.times[-1] for stream in streams)
    if sum(begin < at <= end for at in streams[0].times) < 2:
        begin = min(stream.times[0] for stream in streams)
        end = max(stream.times[-1] for stream in streams)
    count = sum(begin < at <= end for stream in streams for at in stream.times)
    return count / (end - begin) if end > begin else 0.0


def calibrate(loads: Sequence[Load]) -> list[StageCost]:
    """What each stage costs: a line through the passes of all loads, and the hops of the lightest one.

    With one stream nothing waits for another session, so what is queueing then is the cost of waking up and belongs
    to the hop. With more streams it is what the model has to predict, and is left out.

    Raises:
        ValueError: no loads, or loads of different numbers of stages.
    """
    if not loads:
        raise ValueError("nothing was measured")
    lightest = min(loads, key=lambda load: load.streams)
    count = len(lightest.stages)
    alone = lightest.streams == 1
    woken = [part.queue_s if alone else 0.0 for part in lightest.stages]
    costs = []
    for index, part in enumerate(lightest.stages):
        fixed, row = fit_pass([(_rows(load, index), load.stages[index].compute_s) for load in loads])
        if index + 1 < count:
            onward = lightest.stages[index + 1].network_s + woken[index + 1]
        else:
            onward = max(0.0, lightest.rest_s) + lightest.stages[0].network_s + woken[0]
        replicas = max(load.stages[index].replicas for load in loads)
        costs.append(StageCost(fixed, row, part.encode_s + onward, replicas))
    return costs


def waking(loads: Sequence[Load]) -> float:
    """Seconds of queueing that `calibrate` counts as hops: all stages', when nothing else is there to wait for."""
    lightest = min(loads, key=lambda load: load.streams)
    return sum(part.queue_s for part in lightest.stages) if lightest.streams == 1 else 0.0


def _rows(load: Load, index: int) -> float:
    """Sessions in a pass; what the head's schedule makes of them when the stage did not say."""
    return load.stages[index].rows or load.streams / batches_of(
        load.streams, len(load.stages), load.stages[0].replicas
    )


def _parts(rounds: Sequence[Sequence[Stream]]) -> tuple[StagePart, ...]:
    stages = sorted({time.stage for streams in rounds for stream in streams for time in stream.last})
    return tuple(_part(stage, rounds, len(stages)) for stage in stages)


def _part(stage: int, rounds: Sequence[Sequence[Stream]], stages: int) -> StagePart:
    sums = dict.fromkeys(("steps", "queue_s", "compute_s", "encode_s", "network_s", "bubble_s", "rows"), 0.0)
    for stream in (stream for streams in rounds for stream in streams):
        for sign, times in ((1, stream.last), (-1, stream.first)):
            for time in times:
                if time.stage == stage:
                    for name in sums:
                        sums[name] += sign * getattr(time, name)
    steps = max(sums.pop("steps"), 1.0)
    each = {name: value / steps for name, value in sums.items()}
    replicas, heads = _replicas(stage, rounds), _replicas(0, rounds)
    # A replica makes so many passes while each session gets one token, with a bubble before each.
    streams = len(rounds[0])
    passes = (streams / each["rows"] if each["rows"] else batches_of(streams, stages, heads)) / replicas
    return StagePart(stage, replicas, idle_s=each.pop("bubble_s") * passes, **each)


def _replicas(stage: int, rounds: Sequence[Sequence[Stream]]) -> int:
    """The most replicas of a stage that took part in one round."""
    return max(
        len({time.replica_id for stream in streams for time in stream.last if time.stage == stage})
        for streams in rounds
    )
