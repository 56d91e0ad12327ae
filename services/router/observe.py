"""One request as metrics and the trace see it."""

import asyncio
import time
from contextlib import AbstractContextManager
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from stagemesh import tracing
from stagemesh.errors import InternalError, NotFound, StagemeshError
from stagemesh.tracing import extract, tracer

from .context import RequestContext
from .telemetry import NOTHING, Telemetry
from .tenants import Billed

OPERATIONS = {"generate": "text_completion", "infer": "infer", "embed": "embeddings"}


class Observed:
    """`with Observed(...) as observed:` counts the request, times it and owns its span.

    The span is not made current, because the body may hand control to its caller between two chunks.
    """

    def __init__(self, telemetry: Telemetry, operation: str, model: str, ctx: RequestContext) -> None:
        self._telemetry = telemetry
        self._model = model
        self.started = time.monotonic()
        self._billed: Billed | None = None
        self.span: Span = trace.INVALID_SPAN
        if tracing.enabled():
            self.span = self._start(operation, ctx)

    def _start(self, operation: str, ctx: RequestContext) -> Span:
        return tracer().start_span(
            "router.request",
            context=_context(ctx),
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": OPERATIONS[operation],
                "gen_ai.provider.name": "stagemesh",
                "gen_ai.request.model": self._model,
                "stagemesh.request_id": ctx.request_id,
                "stagemesh.tenant": ctx.tenant,
            },
        )

    def __enter__(self) -> "Observed":
        self._telemetry.demand.began(self._model)
        return self

    def bill(self, billed: Billed) -> None:
        """Count it against its tenant's quotas from now on, once; raises `QuotaExceeded`."""
        if self._billed is None:
            self._billed = billed.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        if self._billed is not None:
            self._billed.__exit__(kind, error, trace_)
        code = code_of(error)
        self._telemetry.demand.over(self._model)
        model = "unknown" if isinstance(error, NotFound) else self._model
        self._telemetry.requests.count(model, code)
        if error is None:
            self._telemetry.duration.labels(model).observe(time.monotonic() - self.started)
        else:
            self.span.set_attribute("error.type", code)
            if code not in ("CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE"):
                self.span.set_status(Status(StatusCode.ERROR, code))
        self.span.end()

    def prompt(self, tokens: int) -> None:
        """The length of the prompt is known."""
        if self._billed is not None:
            self._billed.prompt(tokens)
        self._telemetry.prompt_tokens.labels(self._model).inc(tokens)
        self.span.set_attribute("gen_ai.usage.input_tokens", tokens)

    def completion(self, tokens: int, finish_reason: str) -> None:
        """The generation ended, well or not, after that many new tokens."""
        self._telemetry.tokens.labels(self._model).inc(tokens)
        self.span.set_attribute("gen_ai.usage.output_tokens", tokens)
        if finish_reason:
            self.span.set_attribute("gen_ai.response.finish_reasons", [finish_reason])

    def computed(self, tokens: int = 0) -> None:
        """It was not answered from the cache: so many tokens were made for it, beside its prompt."""
        if self._billed is not None:
            self._billed.computed(tokens)

    def current(self) -> AbstractContextManager[Span]:
        """A context manager that makes the span current around a block that does not yield to the caller."""
        if not tracing.enabled():
            return NOTHING
        return trace.use_span(
            self.span, end_on_exit=False, record_exception=False, set_status_on_exception=False
        )


def code_of(error: BaseException | None) -> str:
    """The label of an outcome: OK, CANCELLED, or the name of the gRPC status."""
    if error is None:
        return "OK"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    if isinstance(error, StagemeshError) and not isinstance(error, InternalError):
        return error.kind.upper()
    return "INTERNAL"


def _context(ctx: RequestContext) -> Context | None:
    """The current context when a door has a span of its own, else the trace that the caller sent along."""
    if trace.get_current_span().get_span_context().is_valid:
        return None
    return extract(ctx.metadata.items())
