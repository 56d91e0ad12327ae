"""The story of one stateless inference: scatter micro-batches over routes, gather the answers in order."""

import asyncio
import random
from collections.abc import Sequence
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

    async def ask(rows: range) -> tuple[Route, Sequence[tensor_pb2.Tensor]]:
        return await _ask(batch, rows, spec, ctx, span, dispatch, rng.getrandbits(63) | 1)

    stages = len(spec.partitions)
    parts = plan(batch.lengths, stages)
    if len(parts) == 1:
        return await _whole(batch, *await ask(parts[0]))
    room = asyncio.Semaphore(max(IN_FLIGHT, 2 * stages))

    async def one(rows: range) -> tuple[Route, list[np.ndarray]]:
        async with room:
            route, tensors = await ask(rows)
            return route, _arrays(tensors)

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
    batch: Batch, route: Route, tensors: Sequence[tensor_pb2.Tensor]
) -> tuple[list[tensor_pb2.Tensor], Route]:
    """A request that was one micro-batch: nothing is copied or handed to a thread without need."""
    padded = min(batch.lengths) < batch.width
    outputs = []
    for name, tensor, array in zip(batch.outputs, tensors, _arrays(tensors), strict=True):
        per_token = name in PER_TOKEN
        join = partial(gather, [array], [batch.lengths], batch.width, per_token=per_token)
        large = per_token and padded and array.nbytes > THREAD_AT_BYTES
        joined = await asyncio.to_thread(join) if large else join()
        if per_token and padded:
            outputs.append(from_numpy(name, joined))
        else:  # the same bytes
            tensor.name = name
            tensor.shape[:] = joined.shape
            outputs.append(tensor)
    return outputs, route


def _arrays(tensors: Sequence[tensor_pb2.Tensor]) -> list[np.ndarray]:
    try:
        return [to_numpy(tensor, "outputs") for tensor in tensors]
    except InvalidArgument as error:
        raise InternalError(f"a stage gave an unreadable tensor: {error.message}") from None


async def _ask(
    batch: Batch,
    rows: range,
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    span: Span,
    dispatch: Dispatch,
    session: int,
) -> tuple[Route, Sequence[tensor_pb2.Tensor]]:
    """One micro-batch through the mesh: its outputs as they came, as many as were asked for."""
    lengths = [batch.lengths[row] for row in rows]
    tokens = sum(lengths)
    whole = tokens == len(lengths) * batch.width
    inputs = []
    for name, array in batch.inputs.items():
        packed = array[rows.start : rows.stop] if whole else pack(array, rows, batch.lengths)
        inputs.append(tensor_pb2.Tensor(name=name, dtype="I64", shape=(tokens,), data=packed.tobytes()))

    def request(route: Route) -> stage_pb2.ForwardRequest:
        return stage_pb2.ForwardRequest(
            session=session,
            model=spec.name,
            revision=spec.revision,
            route=route,
            lengths=lengths,
            inputs=inputs,
            outputs=batch.outputs,
            deadline_unix_ms=deadline_unix_ms(ctx),
        )

    nbytes = max(8 * tokens * len(inputs), output_bytes(batch.outputs, len(lengths), tokens, spec))
    route, answer = await dispatch.forward(spec, ctx, span, request, nbytes)
    if len(answer.outputs) != len(batch.outputs):
        raise InternalError(
            f"a stage gave {len(answer.outputs)} outputs, {len(batch.outputs)} were asked for"
        )
    return route, answer.outputs


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
