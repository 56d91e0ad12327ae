"""The story of one stateless inference: scatter micro-batches over routes, gather the answers in order."""

import asyncio
import random
from collections.abc import Sequence

from opentelemetry.trace import Span

from stagemesh.errors import InternalError, InvalidArgument, OutOfRange, StagemeshError
from stagemesh.tensor import check_layout
from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .context import RequestContext
from .dispatch import Dispatch, Route, deadline_unix_ms
from .given import Input
from .micro_batch import MicroBatch
from .scatter import Piece, check_piece, gather, pack, plan, plan_samples
from .validate_tensors import Batch

IN_FLIGHT = 8
"""Micro-batches of one request under way at once, or two per stage and replica where that is more."""
THREAD_AT_BYTES = 2**18
"""Larger answers are put together off the event loop; handing over to a thread costs as much as copying this."""


class Inference:
    """One request: its batch, and what it takes to ask for a part of it."""

    def __init__(
        self,
        batch: Batch,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        span: Span,
        dispatch: Dispatch,
        rng: random.Random,
        *,
        max_output_bytes: int,
    ) -> None:
        self._batch = batch
        self._spec = spec
        self._ctx = ctx
        self._span = span
        self._dispatch = dispatch
        self._rng = rng
        self._max_output_bytes = max_output_bytes
        self._output_bytes = 0

    async def run(self, answer: inference_pb2.InferResponse) -> Route:
        """Add the outputs to `answer` in the order asked for, [B, ...]; the route of the first micro-batch.

        A micro-batch that fails for a reason that is not its own is tried on other routes. When one fails for good
        the others are cancelled, which frees what they hold on the stages, and its error, which names its rows, is
        raised.
        """
        parts, at_once = [range(1)], 1
        if len(self._batch.lengths) > 1:
            stages, replicas = len(self._spec.partitions), self._dispatch.replicas(self._spec)
            parts, at_once = self._parts(stages, replicas), max(IN_FLIGHT, 2 * stages * replicas)
        answers = [await self._ask(parts[0])] if len(parts) == 1 else await self._asked(parts, at_once)
        pieces = [each for _, each in answers]
        if self._output_bytes > THREAD_AT_BYTES:
            await asyncio.to_thread(self._join, pieces, parts, answer)
        else:
            self._join(pieces, parts, answer)
        return answers[0][0]

    async def _asked(self, parts: Sequence[range], at_once: int) -> list[tuple[Route, list[Piece]]]:
        """The answers of several micro-batches, of which so many are under way at once."""
        room = asyncio.Semaphore(at_once)

        async def one(rows: range) -> tuple[Route, list[Piece]]:
            async with room:
                try:
                    return await self._ask(rows)
                except StagemeshError as error:
                    raise _with_rows(error, rows, len(self._batch.lengths)) from None

        tasks: list[asyncio.Task[tuple[Route, list[Piece]]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(rows)) for rows in parts]
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        return [task.result() for task in tasks]

    def _parts(self, stages: int, replicas: int) -> list[range]:
        batch = self._batch
        if batch.fixed:
            return [range(len(batch.lengths))]
        if batch.by_token:
            return plan(batch.lengths, stages, replicas)
        return plan_samples(len(batch.lengths), batch.row_bytes, stages, replicas)

    def _join(
        self, answers: Sequence[list[Piece]], parts: Sequence[range], answer: inference_pb2.InferResponse
    ) -> None:
        batch = self._batch
        for index, rule in enumerate(batch.outputs):
            per_token = batch.by_token and rule.per_token
            joined = answers[0][index]
            if per_token or len(parts) > 1:
                pieces = [each[index] for each in answers]
                groups = [batch.lengths[rows.start : rows.stop] for rows in parts]
                joined = gather(pieces, groups, batch.width, per_token=per_token)
            answer.outputs.add(name=rule.name, dtype=joined.dtype, shape=joined.shape, data=joined.data)

    async def _ask(self, rows: range) -> tuple[Route, list[Piece]]:
        """One micro-batch through the mesh.

        What cannot be used, an answer that makes no sense or a fault inside a stage, is asked for once more elsewhere.
        """
        batch = self._batch
        part = batch.whole
        if part is None or len(rows) < len(batch.lengths):
            lengths = batch.lengths[rows.start : rows.stop]
            part = MicroBatch.of(batch.inputs, lengths, batch.outputs, self._spec, by_token=batch.by_token)
        payloads = [self._packed(given, rows, part.tokens) for given in batch.inputs]
        asked: Route = []

        def request(route: Route) -> stage_pb2.ForwardRequest:
            asked[:] = route
            made = stage_pb2.ForwardRequest()
            made.CopyFrom(part.asked)
            made.session = self._rng.getrandbits(63) | 1
            made.deadline_unix_ms = deadline_unix_ms(self._ctx)
            made.route.extend(route)
            # In place: a tensor made before would be copied.
            for given, shape, data in zip(batch.inputs, part.shapes, payloads, strict=True):
                made.inputs.add(name=given.name, dtype=given.dtype, shape=shape, data=data)
            return made

        avoid: set[str] = set()
        while True:
            try:
                route, answer = await self._dispatch.forward(
                    self._spec, self._ctx, self._span, request, part.nbytes, avoid
                )
                pieces = self._read(answer, part.lengths)
                break
            except InternalError as error:
                if avoid or not (avoid := self._dispatch.elsewhere(self._spec, self._ctx, asked, error)):
                    raise
        self._count(pieces, rows, part.tokens)
        return route, pieces

    def _packed(self, given: Input, rows: range, tokens: int) -> bytes:
        """Rows of one input without padding."""
        batch = self._batch
        if batch.by_token and tokens < len(rows) * batch.width:
            return pack(given.array, rows, batch.lengths).tobytes()
        if len(rows) == len(batch.lengths):
            return given.data
        return given.array[rows.start : rows.stop].tobytes()

    def _read(self, answer: stage_pb2.ForwardResponse, lengths: Sequence[int]) -> list[Piece]:
        """The outputs, checked; raises `InternalError` for an answer that makes no sense."""
        rules = self._batch.outputs
        if len(answer.outputs) != len(rules):
            raise InternalError(f"a stage gave {len(answer.outputs)} outputs, {len(rules)} were asked for")
        pieces = []
        for rule, tensor in zip(rules, answer.outputs, strict=True):
            piece = Piece(tensor.dtype, tuple(tensor.shape), tensor.data)
            try:
                if tensor.encoding or tensor.HasField("shared"):
                    raise InvalidArgument("its payload is not in `data`")
                check_layout(piece.dtype, piece.shape, len(piece.data), "outputs")
            except InvalidArgument as error:
                raise InternalError(f"a stage gave an unreadable tensor: {error.message}") from None
            check_piece(piece, lengths, per_token=self._batch.by_token and rule.per_token)
            pieces.append(piece)
        return pieces

    def _count(self, pieces: Sequence[Piece], rows: range, tokens: int) -> None:
        """Outputs whose size only the model knows are limited here, as they come in."""
        for rule, piece in zip(self._batch.outputs, pieces, strict=True):
            size = len(piece.data)
            if self._batch.by_token and rule.per_token:
                size = size * len(rows) * self._batch.width // tokens
            self._output_bytes += size
        if self._output_bytes > self._max_output_bytes:
            raise OutOfRange(
                f"inputs: the answer takes more than the {self._max_output_bytes} bytes of one message; "
                "send fewer rows",
                field="inputs",
            )


def _with_rows(error: StagemeshError, rows: range, count: int) -> StagemeshError:
    """The same error, which says what it is about."""
    which = f"row {rows.start}" if len(rows) == 1 else f"rows {rows.start} to {rows.stop - 1}"
    return type(error)(
        f"{error.message} ({which} of {count})", field=error.field, retry_after_s=error.retry_after_s
    )


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
