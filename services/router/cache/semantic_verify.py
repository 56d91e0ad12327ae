"""Computes for real what was answered by another question's answer, or compares what was computed anyway: evidence.

All of it runs after the caller has its answer. Real answers are computed among the running requests like any other, at
the lowest priority, a few at a time; what finds no room is dropped, whatever its answer would have been, so what is
left is a fair sample.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from opentelemetry import trace

from stagemesh.errors import StagemeshError
from stagemesh.metrics import tallies
from stagemesh.v1 import inference_pb2
from stagemesh.v1 import semantic_pb2 as pb

from ..admission.priority import Priority
from ..context import RequestContext
from ..prepare import Plan
from .semantic import SemanticClient, Sought

log = logging.getLogger(__name__)
MAX_AT_ONCE = 2
MAX_WAITING = 64
DEADLINE_S = 120.0
JUDGE_TIMEOUT_S = 2.0
MAX_ANSWER = 16 * 1024
"""Characters of an answer that are compared; longer ones count as they begin."""

Answers = Callable[[RequestContext], Awaitable[tuple[str, str] | None]]
Recompute = Callable[[Plan, RequestContext], AsyncGenerator[inference_pb2.GenerateResponse, None]]


class Verifier:
    """`recompute` computes an answer for real within admission, and stores it; it raises `StagemeshError`."""

    def __init__(self, semantic: SemanticClient, recompute: Recompute) -> None:
        self._semantic = semantic
        self._recompute = recompute
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = tallies(
            "stagemesh_semantic_verifications_total",
            "Kept answers held against real ones, by what became of that: right, wrong, or why it was dropped.",
            ("result",),
        )

    def __repr__(self) -> str:
        return f"Verifier({len(self._tasks)} under way)"

    def after_hit(self, plan: Plan, ctx: RequestContext, sought: Sought, kept: str) -> None:
        """`kept` was given for the plan's question: compute the real answer, too."""

        async def real(background: RequestContext) -> tuple[str, str] | None:
            parts: list[str] = []
            async with aclosing(self._recompute(plan, background)) as responses:
                async for response in responses:
                    parts.append(response.text)
            return kept, "".join(parts)

        self._start(plan, ctx, sought, real, served=True)

    def after_miss(self, plan: Plan, ctx: RequestContext, sought: Sought, real: str) -> None:
        """`real` was computed, where a kept answer might have been given: see whether it would have been right."""
        found = sought.found
        if found is None:
            return
        key = found.key

        async def both(background: RequestContext) -> tuple[str, str] | None:
            value = await self._semantic.value(plan, background, key, trace.INVALID_SPAN)
            if value is None:
                return None
            return "".join(chunk.text for chunk in value.chunks), real

        self._start(plan, ctx, sought, both, served=False)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(
        self, plan: Plan, ctx: RequestContext, sought: Sought, answers: Answers, *, served: bool
    ) -> None:
        if sought.found is None or not sought.found.judge:
            return
        if len(self._tasks) >= MAX_WAITING:
            self._done.labels("too many at once").inc()
            return
        # Of the caller nothing is left but whose it is.
        background = RequestContext(
            request_id=os.urandom(16).hex(),
            tenant=ctx.tenant,
            deadline=time.monotonic() + DEADLINE_S,
            priority=Priority.LOW,
        )
        task = asyncio.create_task(
            self._verify(plan, background, sought, answers, served=served), name="semantic-verify"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(
        self, plan: Plan, background: RequestContext, sought: Sought, answers: Answers, *, served: bool
    ) -> None:
        try:
            async with self._room, asyncio.timeout(DEADLINE_S):
                pair = await answers(background)
                result = "gone" if pair is None else await self._judge(plan, background, sought, pair, served)
        except StagemeshError as error:
            result = error.kind
        except TimeoutError:
            result = "deadline"
        except asyncio.CancelledError:
            self._done.labels("shutdown").inc()
            raise
        except Exception:
            log.exception("semantic.verification_failed")
            result = "failed"
        self._done.labels(result).inc()

    async def _judge(
        self, plan: Plan, background: RequestContext, sought: Sought, pair: tuple[str, str], served: bool
    ) -> str:
        kept, real = (answer[:MAX_ANSWER] for answer in pair)
        assert sought.found is not None
        request = pb.SemanticJudgeRequest(
            tenant=background.tenant,
            scope=sought.scope,
            settings=plan.spec.semantic,
            partition=sought.partition,
            key=sought.found.key,
            similarity=min(sought.found.similarity, 1.0),
            kind=sought.found.kind,
            served=served,
            kept_answer=kept,
            real_answer=real,
        )
        if kept != real and kept.strip() and real.strip():
            vectors, _ = await self._semantic.embed(
                sought.encoder, [kept, real], background, trace.INVALID_SPAN
            )
            request.kept_vector = vectors[0].astype("<f4").tobytes()
            request.real_vector = vectors[1].astype("<f4").tobytes()
        verdict = await self._semantic.call(
            plan.spec.name, lambda stub: stub.Judge(request, timeout=JUDGE_TIMEOUT_S)
        )
        if verdict is None:
            return "no cache"
        return "right" if verdict.same else "wrong"
