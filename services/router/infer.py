"""The story of one stateless inference: scatter micro-batches over routes, gather the answers in order."""

import asyncio
import random
from functools import partial

import numpy as np
from opentelemetry.trace import Span

from stagemesh.errors import InternalError, InvalidArgument
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1 import registry_pb2, stage_pb2, tensor_pb2

from .context import RequestContext
from .dispatch import Dispatch, Route, deadline_unix_ms
from .scatter import gather, pack, plan
from .validate_tensors import PER_TOKEN, Batch, output_bytes

IN_FLIGHT = 8
"""Micro-batches of one request under way at once, or two per stage where that is more."""
THREAD_AT_BYTES = 2**18
"""Larger answers are put together off the event loop; handing over to a thread costs as much as copying this."""


async def infer_batch(
    batch: Batch,
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    span: Span,
    dispatch: Dispatch,
    rng: random.Random,
) -> tuple[list[tensor_pb2.Tensor], Route]:
    """Outputs in the order asked for, [B, ...], and the route of the first micro-batch.

    When one micro-batch fails, the others are cancelled and its error is raised.
    """
    stages = len(spec.partitions)
    parts = plan(batch.lengths, stages)
    if len(parts) == 1:
        return await _whole(batch, parts[0], spec, ctx, span, dispatch, rng.getrandbits(63) | 1)
    room = asyncio.Semaphore(max(IN_FLIGHT, 2 * stages))

    async def one(rows: range) -> tuple[Route, list[np.ndarray]]:
        async with room:
            return await _forward(batch, rows, spec, ctx, span, dispatch, rng.getrandbits(63) | 1)

    tasks: list[asyncio.Task[tuple[Route, list[np.ndarray]]]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(rows)) for rows in parts]
    except BaseExceptionGroup as failed:
        raise _first(failed) from None
    answers = [task.result() for task in tasks]
    groups = [[batch.lengths[row] for row in rows] for rows in parts]
    outputs = []
    for index, name in enumerate(batch.outputs):
        pieces = [arrays[index] for _, arrays in answers]
        joined = await asyncio.to_thread(gather, pieces, groups, batch.width, per_token=name in PER_TOKEN)
        outputs.append(from_numpy(name, joined))
    return outputs, answers[0][0]


async def _whole(
    batch: Batch,
    rows: range,
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    span: Span,
    dispatch: Dispatch,
    session: int,
) -> tuple[list[tensor_pb2.Tensor], Route]:
    """A request that is one micro-batch: no tasks, and no threads where there is little to copy."""
    route, arrays = await _forward(batch, rows, spec, ctx, span, dispatch, session)
    outputs = []
    for name, array in zip(batch.outputs, arrays, strict=True):
        join = partial(gather, [array], [batch.lengths], batch.width, per_token=name in PER_TOKEN)
        joined = join() if array.nbytes <= THREAD_AT_BYTES else await asyncio.to_thread(join)
        outputs.append(from_numpy(name, joined))
    return outputs, route


async def _forward(
    batch: Batch,
    rows: range,
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    span: Span,
    dispatch: Dispatch,
    session: int,
) -> tuple[Route, list[np.ndarray]]:
    inputs = [from_numpy(name, pack(array, rows, batch.lengths)) for name, array in batch.inputs.items()]

    def request(route: Route) -> stage_pb2.ForwardRequest:
        return stage_pb2.ForwardRequest(
            session=session,
            model=spec.name,
            revision=spec.revision,
            route=route,
            lengths=[batch.lengths[row] for row in rows],
            inputs=inputs,
            outputs=batch.outputs,
            deadline_unix_ms=deadline_unix_ms(ctx),
        )

    tokens = sum(batch.lengths[row] for row in rows)
    nbytes = max(8 * tokens * len(inputs), output_bytes(batch.outputs, len(rows), tokens, spec))
    route, answer = await dispatch.forward(spec, ctx, span, request, nbytes)
    if len(answer.outputs) != len(batch.outputs):
        raise InternalError(
            f"a stage gave {len(answer.outputs)} outputs, {len(batch.outputs)} were asked for"
        )
    try:
        return route, [to_numpy(tensor, "outputs") for tensor in answer.outputs]
    except InvalidArgument as error:
        raise InternalError(f"a stage gave an unreadable tensor: {error.message}") from None


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
