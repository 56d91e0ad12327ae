"""`stagemesh_cache_semantic_*`: what the layer decides, what it has measured, and whether it is on."""

from stagemesh import metrics
from stagemesh.v1.semantic_pb2 import CacheReport

from .scope import LEARNING, OFF_BY_ALARM, OFF_BY_OPERATOR, SERVING

STATES = (SERVING, LEARNING, OFF_BY_ALARM, OFF_BY_OPERATOR)
_SECONDS = (0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 1.0)
MAX_MODELS = 256
"""Models that are shown; a label for each of any number would fill the memory of whoever reads them."""


class SemanticMeasures:
    """Counters as things happen; gauges from a report, about once a second."""

    def __init__(self) -> None:
        self.finds = metrics.counter(
            "stagemesh_cache_semantic_finds_total",
            "Questions without an exact answer, by outcome.",
            ("outcome",),
        )
        self.verdicts = metrics.counter(
            "stagemesh_cache_semantic_verdicts_total",
            "Kept answers compared with real ones: were they served, and were they right.",
            ("served", "verdict"),
        )
        self.seconds = metrics.histogram(
            "stagemesh_cache_semantic_find_seconds",
            "From a request for a neighbour to its answer.",
            (),
            _SECONDS,
        )
        self.dropped_writes = metrics.counter(
            "stagemesh_cache_semantic_dropped_writes_total",
            "Changes that could not be written to the file.",
            (),
        )
        self._gauges = {
            name: metrics.gauge(f"stagemesh_cache_semantic_{name}", text, ("model",))
            for name, text in (
                ("entries", "Questions that are kept."),
                ("used_bytes", "Bytes of the questions that are kept."),
                ("allowed_rate", "Share of semantic hits that may be wrong."),
                ("false_hit_rate", "Share of the verified hits that were wrong."),
                ("false_hit_rate_high", "Upper end of its interval."),
                ("alarm_level", "0..1: how close verified errors are to turning the layer off."),
                ("alarms", "Times that the layer has turned itself off."),
                ("hit_rate", "Share of lookups that any cache answered, lately."),
                ("hit_rate_drifted", "1 for an hour after the rate of hits has drifted."),
            )
        }
        self._state = metrics.gauge(
            "stagemesh_cache_semantic_state", "1 for the state that the layer is in.", ("model", "state")
        )
        for outcome in ("served", "refused"):
            self.finds.labels(outcome)

    def show(self, report: CacheReport) -> None:
        """Set the gauges."""
        for each in report.models[:MAX_MODELS]:
            model, semantic = each.usage.model or each.semantic.scope.model, each.semantic
            self._set("hit_rate", model, each.hit_rate)
            self._set("hit_rate_drifted", model, float(each.hit_rate_drifted))
            if not each.HasField("semantic"):
                continue
            self._set("entries", model, semantic.entries)
            self._set("used_bytes", model, semantic.bytes)
            self._set("allowed_rate", model, semantic.allowed_false_hit_rate)
            self._set(
                "false_hit_rate", model, semantic.false_hits / semantic.verified if semantic.verified else 0
            )
            self._set("false_hit_rate_high", model, semantic.false_hit_rate_high)
            self._set("alarm_level", model, semantic.alarm_level)
            self._set("alarms", model, semantic.alarms)
            for state in STATES:
                self._state.labels(model, state).set(float(state == semantic.state))

    def _set(self, name: str, model: str, value: float) -> None:
        self._gauges[name].labels(model).set(value)
