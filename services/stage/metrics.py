"""The stage's Prometheus metrics."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from threading import Lock

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from stagemesh.metrics import LATENCY_BUCKETS_S, REGISTRY, counter, gauge
from stagemesh.v1.stage_pb2 import HopRecord

SESSIONS = gauge("stagemesh_stage_sessions", "Sessions held by replicas of a stage", ("model", "stage"))
SESSION_ERRORS = counter(
    "stagemesh_stage_session_errors_total", "Sessions that failed on a stage", ("model", "stage")
)
FRAMES_HERE = gauge(
    "stagemesh_stage_frames",
    "Frames on a stage now: held (came in, not done with) and outbox (wait to go out)",
    ("model", "stage", "place"),
)
TOKENS = counter("stagemesh_stage_tokens_total", "Tokens that went through a stage's head", ("model",))
REUSED_TOKENS = counter(
    "stagemesh_stage_reused_tokens_total",
    "Prompt tokens whose keys and values an earlier session had left",
    ("model",),
)
PREFIXES_MISSED = counter(
    "stagemesh_stage_prefixes_missed_total",
    "Prompts computed from their start because a later stage no longer held the beginning",
    ("model",),
)
FENCED = counter(
    "stagemesh_stage_fenced_steps_total",
    "Steps and results of an older epoch that came too late and were dropped",
    ("model", "stage"),
)
HELD = gauge(
    "stagemesh_stage_held_sessions",
    "Sessions that wait for the replacement of a lost neighbour",
    ("model", "stage"),
)
REBUILT = counter(
    "stagemesh_stage_rebuilt_tokens_total",
    "Positions computed to take the place of a lost replica",
    ("model", "stage"),
)
JOURNAL_BYTES = gauge(
    "stagemesh_stage_journal_bytes",
    "Activations kept to build a lost next replica again: of running sessions, and of prompts that may come again",
    ("model", "stage", "part"),
)
JOURNALS_DROPPED = counter(
    "stagemesh_stage_journals_dropped_total",
    "Sessions whose journal outgrew the budget: they are computed again from their start when a stage is lost",
    ("model", "stage"),
)
BAD_FRAMES = counter("stagemesh_stage_bad_frames_total", "Frames refused because they could not be read")
KEPT_BYTES = gauge(
    "stagemesh_stage_kept_bytes",
    "Memory of loaded partitions that are kept although no assignment asks for them",
)
KEPT_ASKED = counter(
    "stagemesh_stage_kept_asked_total",
    "Assignments by whether their partition was kept: hit (attached at once) or miss (loaded)",
    ("result",),
)
KEPT_GIVEN_UP = counter(
    "stagemesh_stage_kept_given_up_total",
    "Kept partitions given up, by why: room (for another one kept), needed (by a partition that serves), "
    "short (the machine ran out of memory)",
    ("why",),
)
REPLICAS = gauge("stagemesh_stage_replicas_ready", "Replicas of this node that are ready")
HANGS = counter(
    "stagemesh_stage_hangs_total", "Passes that hung, for which a replica was given up", ("model", "stage")
)
TENSOR_FRAMES = counter(
    "stagemesh_stage_tensor_frames_total",
    "Tensors sent to other replicas by lane: shared (memory of this host), bytes (in the stream), "
    "fallback (in the stream, since the shared memory was full)",
    ("lane",),
)
LINKS = counter(
    "stagemesh_stage_links_total",
    "Links to other replicas by the way that frames take: local (a Unix socket of this host) or grpc (the stream)",
    ("way",),
)

TOGETHER = counter(
    "stagemesh_stage_passes_together_total",
    "Passes of decode steps that were computed as one with others that waited beside them",
    ("model", "stage"),
)

_PASS_SECONDS = (
    "stagemesh_stage_pass_seconds",
    "Time of a pass on a stage, by part: queue, compute, encode, network, and bubble (nothing to compute before it)",
    ("model", "stage", "part"),
)
PARTS = ("queue", "compute", "encode", "network", "bubble")
_BOUNDS_US = tuple(round(bound * 1e6) for bound in LATENCY_BUCKETS_S)
_LABELS = [*(str(bound) for bound in LATENCY_BUCKETS_S), "+Inf"]


class PassTimes:
    """Counts of one replica's passes by part and time; a pass costs a microsecond, a scrape pays for the rest."""

    def __init__(self, model: str, stage: int) -> None:
        self.model = model
        self.stage = str(stage)
        self._counts = {part: [0] * len(_LABELS) for part in PARTS}
        self._sums = dict.fromkeys(PARTS, 0)

    def observe(self, hop: HopRecord, sharing: int = 1) -> None:
        """Count a pass; of so many that were computed as one, each has its part of that time."""
        for part, us in (
            ("queue", hop.queue_us),
            ("compute", hop.compute_us // sharing),
            ("encode", hop.encode_us),
            ("network", hop.network_us),
            ("bubble", hop.bubble_us),
        ):
            self._counts[part][bisect_left(_BOUNDS_US, us)] += 1
            self._sums[part] += us

    def parts(self) -> Iterator[tuple[str, list[int], int]]:
        """Of each part: its name, passes per bucket, and microseconds in all."""
        for part in PARTS:
            yield part, list(self._counts[part]), self._sums[part]


class _PassSeconds(Collector):
    """The histogram of every replica that this process has or had."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], PassTimes] = {}
        self._lock = Lock()

    def of(self, model: str, stage: int) -> PassTimes:
        with self._lock:
            return self._times.setdefault((model, str(stage)), PassTimes(model, stage))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        name, text, labels = _PASS_SECONDS
        family = HistogramMetricFamily(name, text, labels=labels)
        with self._lock:
            known = list(self._times.values())
        for times in known:
            for part, counts, total_us in times.parts():
                buckets = list(zip(_LABELS, itertools.accumulate(counts), strict=True))
                family.add_metric([times.model, times.stage, part], buckets, total_us / 1e6)
        yield family


_PASSES = _PassSeconds()
REGISTRY.register(_PASSES)


def pass_times(model: str, stage: int) -> PassTimes:
    """Where passes of this stage of the model are counted."""
    return _PASSES.of(model, stage)
