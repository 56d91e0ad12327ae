"""What the leading registry knows of each model's load, as metrics: for dashboards, and for an autoscaler outside."""

from collections.abc import Sequence

from stagemesh import metrics

from .scaling.load import ModelLoad

_STAGE = ("model", "stage")


class ScalingGauges:
    """Only the leader shows them, so that nobody adds two registries' views up."""

    def __init__(self) -> None:
        self._shown: set[tuple[str, str]] = set()
        self._wanted = metrics.gauge(
            "stagemesh_replicas_wanted", "Replicas of a stage that should be there now.", _STAGE
        )
        self._ready = metrics.gauge("stagemesh_replicas_ready", "Replicas of a stage that serve.", _STAGE)
        self._queue = metrics.gauge(
            "stagemesh_stage_queue_ms", "Milliseconds that a step waits for its pass.", _STAGE
        )
        self._busy = metrics.gauge(
            "stagemesh_stage_busy_share", "Share of the time in which a stage's replicas compute.", _STAGE
        )
        self._kv = metrics.gauge(
            "stagemesh_stage_kv_share", "Share of a stage's KV memory that sessions hold.", _STAGE
        )
        self._asleep = metrics.gauge(
            "stagemesh_model_asleep",
            "1 while a model has no replicas because nobody asks for it.",
            ("model",),
        )
        self._running = metrics.gauge("stagemesh_model_running_requests", "Requests that run.", ("model",))
        self._waiting = metrics.gauge(
            "stagemesh_model_waiting_requests",
            "Requests that wait for their turn, or for the model to wake.",
            ("model",),
        )
        # The names that recipes for HPA and KEDA read; a stage is not known to them, so the fullest counts.
        self._vllm_running = metrics.gauge("vllm:num_requests_running", "Requests that run.", ("model_name",))
        self._vllm_waiting = metrics.gauge(
            "vllm:num_requests_waiting", "Requests that wait.", ("model_name",)
        )
        self._vllm_kv = metrics.gauge(
            "vllm:kv_cache_usage_perc", "Share of KV memory in use, 1 is full.", ("model_name",)
        )

    def show(self, loads: Sequence[ModelLoad]) -> None:
        """These models' loads, and no others'."""
        shown: set[tuple[str, str]] = set()
        for load in loads:
            self._asleep.labels(load.model).set(load.asleep)
            for gauge in (self._running, self._vllm_running):
                gauge.labels(load.model).set(load.active)
            for gauge in (self._waiting, self._vllm_waiting):
                gauge.labels(load.model).set(load.waiting)
            self._vllm_kv.labels(load.model).set(max((stage.kv for stage in load.stages), default=0.0))
            for nth, stage in enumerate(load.stages):
                labels = (load.model, str(nth))
                shown.add(labels)
                self._wanted.labels(*labels).set(load.wanted[nth])
                self._ready.labels(*labels).set(stage.ready)
                self._queue.labels(*labels).set(stage.queue_ms)
                self._busy.labels(*labels).set(stage.busy)
                self._kv.labels(*labels).set(stage.kv)
        for labels in self._shown - shown:
            for gauge in (self._wanted, self._ready, self._queue, self._busy, self._kv):
                gauge.remove(*labels)
        for model in {model for model, _ in self._shown} - {model for model, _ in shown}:
            for gauge in (
                self._asleep,
                self._running,
                self._waiting,
                self._vllm_running,
                self._vllm_waiting,
                self._vllm_kv,
            ):
                gauge.remove(model)
        self._shown = shown
