"""Metrics and spans of the router."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import Span
from prometheus_client import Histogram

from stagemesh import tracing
from stagemesh.metrics import gauge, histogram, tallies
from stagemesh.tracing import tracer

from .admission.priority import Priority
from .admission.queue import Admission, Refused, Ticket
from .demand import Demand

NOTHING: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
"""Instead of a span while tracing is off: entering it costs nothing, and it takes every call."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class _Seconds:
    """A histogram that remembers its children: finding one through the metric takes a lock and a tuple."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._metric = histogram(name, text, labels, BUCKETS_S)
        self._children: dict[tuple[str, ...], Histogram] = {}

    def labels(self, *values: str) -> Histogram:
        """The child of these label values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child


class Telemetry:
    """Every metric of the router, what the registry is told of demand, and how it opens spans."""

    def __init__(self) -> None:
        self.demand = Demand()
        self.requests = tallies("stagemesh_requests_total", "Requests by outcome.", ("model", "code"))
        self.duration = _Seconds(
            "stagemesh_request_duration_seconds", "From arrival to the last byte.", ("model",)
        )
        self.first_token = _Seconds(
            "stagemesh_time_to_first_token_seconds", "From arrival to the first token.", ("model",)
        )
        self.tokens = tallies("stagemesh_tokens_generated_total", "New tokens sent to clients.", ("model",))
        self.prompt_tokens = tallies("stagemesh_prompt_tokens_total", "Prompt tokens taken.", ("model",))
        self.cache_lookups = tallies("stagemesh_cache_lookups_total", "Lookups by result.", ("result",))
        self.route_sessions = tallies(
            "stagemesh_route_sessions_total",
            "Sessions and micro-batches routed to a replica.",
            ("model", "stage", "replica"),
        )
        self.prefix_hits = tallies(
            "stagemesh_router_prefix_hit_tokens_total",
            "Prompt tokens that were not computed, since every stage of the route still had them.",
            ("model",),
        )
        self.prefix_reports = tallies(
            "stagemesh_router_prefix_reports_total",
            "What replicas told of the prompts they hold: full, changes, or missed (everything is asked for again).",
            ("kind",),
        )
        self.prefix_blocks = gauge(
            "stagemesh_router_prefix_blocks", "Blocks of prompts of which this router knows who holds them."
        )
        self.recoveries = tallies(
            "stagemesh_session_recoveries_total",
            "Sessions that lost their route after a token came, and went on along another one.",
            ("model",),
        )
        self.resumed = tallies(
            "stagemesh_resumed_answers_total",
            "Answers that went on here after their stream broke at another router.",
            ("model",),
        )
        self.retries = tallies(
            "stagemesh_route_retries_total", "Routes that broke and were tried anew.", ("model",)
        )
        self.retries_denied = tallies(
            "stagemesh_retries_denied_total",
            "Retries that the budget had no room for: stateless ones fail, sessions wait before they go on.",
            ("model",),
        )
        self.http_requests = tallies(
            "stagemesh_http_requests_total", "HTTP requests by status.", ("path", "status")
        )
        self.http_duration = _Seconds(
            "stagemesh_http_request_duration_seconds",
            "From the request's head to the last byte of the answer.",
            ("path",),
        )
        self.active = gauge("stagemesh_sessions_active", "Requests that run now.")
        self.waiting = gauge("stagemesh_sessions_waiting", "Requests that wait for their turn.")
        self.waiting_by_priority = gauge(
            "stagemesh_requests_waiting", "Requests that wait for their turn, by priority.", ("priority",)
        )
        self.waited = _Seconds(
            "stagemesh_admission_wait_seconds", "How long requests waited for their turn.", ("priority",)
        )
        self.refusals = tallies(
            "stagemesh_admission_refusals_total",
            "Requests refused early: the queue was full, their turn would have come too late, or a higher priority "
            "took their place.",
            ("model", "priority", "reason"),
        )
        self.held = gauge("stagemesh_requests_held", "Requests that wait for their model to wake.")
        self.wakes = tallies(
            "stagemesh_model_wakes_total", "Times that a registry was asked to wake a model.", ("model",)
        )
        self.woken = _Seconds(
            "stagemesh_model_wake_seconds",
            "From the first request to a model that sleeps until every stage of it was ready.",
            ("model",),
        )
        self.not_held = tallies(
            "stagemesh_requests_not_held_total",
            "Requests to models that sleep, refused because as many waited already as may.",
            ("model",),
        )
        self.etcd_connected = gauge("stagemesh_etcd_connected", "1 while etcd answers this process.")

    def watch_queue(self, admission: Admission) -> None:
        """Show how many wait, by priority."""
        for priority in Priority:
            of_class = self.waiting_by_priority.labels(priority.name.lower())
            of_class.set_function(partial(admission.waiting_of, priority))

    def began(self, priority: Priority, waited_s: float) -> None:
        """A request begins to run after it has waited so long."""
        self.waited.labels(priority.name.lower()).observe(waited_s)

    def refused(self, ticket: Ticket, refused: Refused) -> None:
        """A request was refused early."""
        self.refusals.labels(ticket.model, ticket.priority.name.lower(), refused.reason).inc()

    def span(self, name: str, parent: Span | None = None) -> AbstractContextManager[Span]:
        """A span around a block that does not yield to a caller; child of `parent`, else of the current span."""
        return self._span(name, parent) if tracing.enabled() else NOTHING

    def under(self, span: Span) -> AbstractContextManager[Span]:
        """Make `span` the current one around a block that does not yield to a caller."""
        return trace.use_span(span) if tracing.enabled() else NOTHING

    @contextmanager
    def _span(self, name: str, parent: Span | None) -> Iterator[Span]:
        context = trace.set_span_in_context(parent) if parent is not None else None
        with tracer().start_as_current_span(name, context=context) as span:
            yield span
