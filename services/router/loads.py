"""What this router knows of each replica: what runs there, what it reported, how its sessions went.

Pure; time comes in as an argument. All of it comes with what is sent anyway: nobody polls.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from stagemesh.v1 import registry_pb2, stage_pb2

from .health.stage import Health
from .health.step_times import StepTimes
from .policies import Candidate
from .policies.candidate import UNKNOWN_ROOM

_NOTHING_TOLD = stage_pb2.ReplicaLoad()


@dataclass(slots=True)
class _Seen:
    active: int = 0
    routed: int = 0
    times: StepTimes = field(default_factory=StepTimes)
    others: int = 0
    others_at: float = -math.inf
    # When it last told its load, and what, and tokens of prompts that were sent there since.
    told_at: float = -math.inf
    told: stage_pb2.ReplicaLoad | None = None
    sent: int = 0
    # Tokens of prompts there that are not through: this router's, and what it told of others'.
    prompts: int = 0
    others_prompts: int = 0
    # Made from the above and the record when asked for, until one of them changes.
    candidate: Candidate | None = None
    record: registry_pb2.ReplicaRecord | None = None


class _Row:
    """The candidates of a stage, in the order of its records; most stay as they are from one choice to the next."""

    __slots__ = ("candidates", "changed", "places", "records")

    def __init__(self, records: Sequence[registry_pb2.ReplicaRecord], candidates: list[Candidate]) -> None:
        self.records = records
        self.candidates = candidates
        self.places = _places(records)
        self.changed: set[str] = set()

    def follow(
        self,
        records: Sequence[registry_pb2.ReplicaRecord],
        made: Callable[[registry_pb2.ReplicaRecord], Candidate],
    ) -> None:
        """Replicas came, went or changed: what lies before the first and after the last of them stays as it is."""
        before = self.records
        first = _alike(before, records)
        last = _alike(before[: first - len(before) - 1 : -1], records[: first - len(records) - 1 : -1])
        self.candidates[first : len(before) - last] = map(made, records[first : len(records) - last])
        self.records = records
        ids = [each.replica_id for each in before[first : len(before) - last]]
        if ids != [each.replica_id for each in records[first : len(records) - last]]:
            self.places = _places(records)
            self.changed &= self.places.keys()


class Loads:
    """In-flight sessions, reported loads and health, by replica id."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._rows: dict[tuple[str, int], _Row] = {}
        self.health = Health(lambda name: self._of(name).times)

    def __repr__(self) -> str:
        return f"Loads({ {name: (seen.active, seen.routed) for name, seen in self._seen.items()} }, {self.health})"

    def begin(self, replica_ids: Iterable[str]) -> None:
        """A session starts on these replicas."""
        for name in replica_ids:
            seen = self._seen.get(name) or self._of(name)
            seen.active += 1
            seen.routed += 1
            if seen.candidate is not None:
                self._changed(name, seen)
            self.health.began(name)

    def end(self, replica_ids: Iterable[str]) -> None:
        """It is over."""
        for name in replica_ids:
            seen = self._seen.get(name) or self._of(name)
            seen.active -= 1
            if seen.candidate is not None:
                self._changed(name, seen)

    def report(self, loads: Iterable[stage_pb2.ReplicaLoad], now: float) -> None:
        """Take loads that came with an answer: a slower step counts at once, a faster one gradually."""
        for load in loads:
            seen = self._of(load.replica_id)
            seen.others = max(load.sessions, load.queue_depth) - seen.active
            seen.others_at = seen.told_at = now
            seen.told, seen.sent = load, 0
            seen.others_prompts = max(load.prompt_tokens - seen.prompts, 0)
            seen.times.report(load.step_ms, now)
            self._changed(load.replica_id, seen)

    def sent(self, replica_ids: Iterable[str], tokens: int) -> None:
        """So many tokens of a prompt are on their way to these replicas; they count there until `through`.

        What a replica tells may be from before they came, so it takes nothing off them.
        """
        for name in replica_ids:
            seen = self._of(name)
            seen.prompts += tokens
            seen.sent += tokens
            self._changed(name, seen)

    def through(self, replica_ids: Iterable[str], tokens: int) -> None:
        """A prompt that was sent has its first token, or is over."""
        for name in replica_ids:
            seen = self._of(name)
            seen.prompts -= tokens
            self._changed(name, seen)

    def failed(self, replica_id: str, now: float) -> None:
        """It broke under a session: its connection was lost, it did not answer, or it answered with a fault of its own.

        What the caller did wrong, what is refused for want of room, and a deadline or a cancellation of the caller's
        is no failure.
        """
        self.health.failed(replica_id, now)

    def succeeded(self, replica_ids: Iterable[str], now: float) -> None:
        """A session or micro-batch came to its end along these replicas."""
        for name in replica_ids:
            self.health.succeeded(name, now)

    def candidates(
        self, replicas: Sequence[registry_pb2.ReplicaRecord], *, whole: bool = False
    ) -> Sequence[Candidate]:
        """What a policy may know of these ready replicas, until the next call.

        Where they are the whole of a stage, the same sequence of records as last time costs only what has changed.
        """
        if not whole or not replicas:
            return [self._candidate(each) for each in replicas]
        stage = replicas[0].model, replicas[0].stage
        row = self._rows.get(stage)
        if row is None:
            row = self._rows[stage] = _Row(replicas, [self._candidate(each) for each in replicas])
            return row.candidates
        if row.records is not replicas:
            row.follow(replicas, self._candidate)
        for name in row.changed:
            place = row.places[name]
            row.candidates[place] = self._candidate(replicas[place])
        row.changed.clear()
        return row.candidates

    def counts(self, replica_id: str) -> tuple[int, int]:
        """Sessions routed so far, and active now."""
        seen = self._of(replica_id)
        return seen.routed, seen.active

    def forget(self, keep: set[str]) -> None:
        """Drop what is known of replicas outside `keep` that run nothing."""
        for name in [name for name, seen in self._seen.items() if name not in keep and not seen.active]:
            del self._seen[name]
            self.health.forget(name)
        self._rows.clear()

    def _changed(self, name: str, seen: _Seen) -> None:
        seen.candidate = None
        if seen.record is not None:
            row = self._rows.get((seen.record.model, seen.record.stage))
            if row is not None and name in row.places:
                row.changed.add(name)

    def _candidate(self, record: registry_pb2.ReplicaRecord) -> Candidate:
        seen = self._of(record.replica_id)
        if seen.candidate is None or seen.record is not record:
            times, told = seen.times, seen.told or _NOTHING_TOLD
            seen.record = record
            seen.candidate = Candidate(
                record.replica_id,
                True,
                seen.active,
                max(seen.others, 0),
                seen.others_at,
                times.peak_ms,
                times.peak_at,
                times.mean_ms,
                times.doubt,
                record.canary_ms,
                record.zone,
                seen.told_at,
                told.sessions,
                told.queue_depth * _number(told.step_ms),
                seen.prompts,
                seen.others_prompts,
                _number(told.prompt_token_us) / 1000,
                _number(told.decode_ms),
                max((told.kv_tokens_free if seen.told else UNKNOWN_ROOM) - seen.sent, 0),
            )
        return seen.candidate

    def _of(self, name: str) -> _Seen:
        seen = self._seen.get(name)
        if seen is None:
            seen = self._seen[name] = _Seen()
        return seen


def _places(records: Sequence[registry_pb2.ReplicaRecord]) -> dict[str, int]:
    return {each.replica_id: place for place, each in enumerate(records)}


def _alike(one: Sequence[registry_pb2.ReplicaRecord], other: Sequence[registry_pb2.ReplicaRecord]) -> int:
    """How many records both begin with; whole pieces are compared at once, since most are the same objects."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _number(told: float) -> float:
    """A time as a replica told it; 0, which is unknown, for what is none."""
    return told if 0 < told < math.inf else 0.0
