"""What is known of one model in one revision with one encoder, and what follows from it. Pure."""

import logging
from collections import Counter

from stagemesh.v1.registry_pb2 import Semantic
from stagemesh.v1.semantic_pb2 import (
    SemanticBand,
    SemanticCounts,
    SemanticReport,
    SemanticScope,
    SemanticState,
)

from . import bounds
from .evidence import Counts, Evidence, band_range
from .guards import Kind
from .monitor import ErrorAlarm
from .rows import Scope
from .settings import Settings, settings_of

log = logging.getLogger(__name__)
OFF_BY_OPERATOR, OFF_BY_ALARM, LEARNING, SERVING = "off (operator)", "off (alarm)", "learning", "serving"


class ScopeState:
    """Evidence, alarm and counters; `settings` are those of the last request."""

    def __init__(self, scope: Scope, settings: Settings) -> None:
        self.scope = scope
        self.settings = settings
        self.evidence = Evidence()
        self.alarm = ErrorAlarm(settings.allowed)
        self.off_by_operator = False
        self.off_by_alarm = False
        self.alarms = self.finds = self.served = self.verified = self.false_hits = 0
        self.refused: Counter[str] = Counter()
        self.used_at = 0.0

    def __repr__(self) -> str:
        return f"ScopeState({'/'.join(self.scope)}, {self.state}, {self.evidence!r})"

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.off_by_operator:
            return OFF_BY_OPERATOR
        if self.off_by_alarm:
            return OFF_BY_ALARM
        return SERVING if self.evidence.serves(self.settings) else LEARNING

    def use(self, settings: Settings, now: float) -> None:
        """A request came with these settings; another allowed rate makes another alarm."""
        if settings.allowed != self.settings.allowed:
            self.alarm = ErrorAlarm(settings.allowed)
        self.settings = settings
        self.used_at = now

    def decide(self, kind: Kind, similarity: float) -> tuple[bool, float, str]:
        """Whether to serve such a pair, the bound of its rate, and why not when not."""
        bound = self.evidence.bound(kind, similarity, self.settings)
        if self.off_by_operator or self.off_by_alarm:
            return False, bound, "off"
        return bound <= self.settings.allowed, bound, "" if bound <= self.settings.allowed else LEARNING

    def learn(self, kind: Kind, similarity: float, *, wrong: bool, served: bool) -> None:
        """Two answers were compared."""
        self.evidence.add(kind, similarity, wrong)
        if served:
            self.verified += 1
            self.false_hits += wrong
            if self.alarm.add(wrong):
                self._alarmed()
        if self.off_by_alarm and self.evidence.serves(self.settings):
            self.off_by_alarm = False
            log.warning("cache.semantic_on model=%s: evidence since the alarm allows it again", self.scope[0])

    def order_off(self) -> None:
        """The operator wants no semantic answers; learning goes on."""
        self.off_by_operator = True

    def order_on(self) -> None:
        """The operator lifts what turned it off; an alarm has left no evidence, so it learns before it serves."""
        self.off_by_operator = self.off_by_alarm = False

    def reset(self) -> None:
        """Forget the evidence."""
        self.evidence.forget()
        self.alarm = ErrorAlarm(self.settings.allowed)
        self.off_by_alarm = False
        self.verified = self.false_hits = 0

    def _alarmed(self) -> None:
        """The rate is past what is allowed: what was measured before holds no longer."""
        self.alarms += 1
        self.off_by_alarm = True
        self.evidence.forget()
        self.alarm = ErrorAlarm(self.settings.allowed)
        log.error(
            "cache.semantic_off model=%s: verified false hits are past the allowed rate of %g (%d of %d since the start); "
            "it is off until new evidence, or the operator, allows it",
            self.scope[0], self.settings.allowed, self.false_hits, self.verified,
        )  # fmt: skip

    def report(self, entries: int, nbytes: int) -> SemanticReport:
        """What an operator is shown."""
        settings = self.settings
        low, high = bounds.interval(self.verified, self.false_hits, confidence=settings.confidence)
        found = SemanticReport(
            scope=_scope(self.scope),
            state=self.state,
            reason=self._reason(),
            allowed_false_hit_rate=settings.allowed,
            confidence=settings.confidence,
            entries=entries,
            bytes=nbytes,
            finds=self.finds,
            served=self.served,
            verified=self.verified,
            false_hits=self.false_hits,
            false_hit_rate_low=low,
            false_hit_rate_high=high,
            refused=dict(self.refused),
            alarms=self.alarms,
            alarm_level=self.alarm.level,
        )
        for (kind, band), counts in sorted(self.evidence.counts.items()):
            samples, wrong = counts.total
            bound = self.evidence.bound_of(kind, band, settings)
            begin, end = band_range(band)
            serves = bound <= settings.allowed and end > settings.min_similarity
            found.bands.append(
                SemanticBand(
                    kind=kind,
                    from_similarity=begin,
                    to_similarity=end,
                    samples=samples,
                    false_samples=wrong,
                    bound=bound,
                    serves=serves and self.state == SERVING and (kind is Kind.SAME or settings.loose),
                )
            )
        return found

    def _reason(self) -> str:
        state = self.state
        if state == OFF_BY_OPERATOR:
            return "turned off by hand"
        if state == OFF_BY_ALARM:
            return "verified false hits were past the allowed rate; new evidence is being gathered"
        if state == LEARNING:
            return "no band of similarity is known well enough yet"
        return ""

    def save(self) -> SemanticState:
        """As it lies in the file."""
        settings = Semantic(
            enabled=True,
            allowed_false_hit_rate=self.settings.allowed,
            confidence=self.settings.confidence,
            verify_share=self.settings.verify_share,
            min_similarity=self.settings.min_similarity,
            loose=self.settings.loose,
        )
        return SemanticState(
            scope=_scope(self.scope),
            counts=[
                SemanticCounts(
                    kind=kind,
                    band=band,
                    samples=each.samples,
                    false_samples=each.wrong,
                    older_samples=each.older_samples,
                    older_false_samples=each.older_wrong,
                )
                for (kind, band), each in sorted(self.evidence.counts.items())
            ],
            off_by_operator=self.off_by_operator,
            off_by_alarm=self.off_by_alarm,
            alarm_log=self.alarm.log_ratio,
            alarms=self.alarms,
            finds=self.finds,
            served=self.served,
            verified=self.verified,
            false_hits=self.false_hits,
            settings=settings,
            used_unix_ms=int(self.used_at * 1000),
        )


def restored(saved: SemanticState) -> ScopeState:
    """What was saved; raises `ValueError` for what cannot be."""
    state = ScopeState(
        (saved.scope.model, saved.scope.revision, saved.scope.encoder), settings_of(saved.settings)
    )
    for each in saved.counts:
        counts = Counts(each.samples, each.false_samples, each.older_samples, each.older_false_samples)
        if counts.wrong > counts.samples or counts.older_wrong > counts.older_samples:
            raise ValueError("more wrong samples than samples")
        band_range(each.band)
        state.evidence.counts[Kind(each.kind), each.band] = counts
    state.off_by_operator, state.off_by_alarm = saved.off_by_operator, saved.off_by_alarm
    state.alarm = ErrorAlarm(state.settings.allowed, saved.alarm_log)
    state.alarms, state.finds, state.served = saved.alarms, saved.finds, saved.served
    state.verified, state.false_hits = saved.verified, min(saved.false_hits, saved.verified)
    state.used_at = saved.used_unix_ms / 1000
    return state


def _scope(scope: Scope) -> SemanticScope:
    return SemanticScope(model=scope[0], revision=scope[1], encoder=scope[2])
