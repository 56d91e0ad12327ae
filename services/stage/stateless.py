"""Stateless micro-batches at the head: one pass through the route, and its outputs."""

import asyncio
import time
from dataclasses import dataclass, field

import torch
from opentelemetry import context as otel_context

from stagemesh.errors import DeadlineExceeded, InvalidArgument, StagemeshError
from stagemesh.tensor import TensorView, check_layout
from stagemesh.tracing import inject
from stagemesh.v1.stage_pb2 import (
    STEP_KIND_STATELESS,
    ForwardRequest,
    ForwardResponse,
    HopRecord,
    SessionError,
    Step,
    StepOpen,
    StepResult,
)
from stagemesh.v1.tensor_pb2 import Tensor

from .partition.interface import Batch
from .passes import Work, segments_of
from .replica import Replica
from .session import ReplicaSession, from_session_error
from .timings import Timings


@dataclass(slots=True, eq=False)
class _Pass:
    """One under way; bounded by its outputs and one error."""

    own: ReplicaSession
    events: asyncio.Queue[tuple[int, TensorView] | StagemeshError]
    timings: Timings = field(default_factory=Timings)


class Stateless:
    """Those that begin at `replica`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._passes: dict[int, _Pass] = {}

    def __repr__(self) -> str:
        return f"<Stateless {self._replica.replica_id} passes={len(self._passes)}>"

    async def forward(self, request: ForwardRequest) -> ForwardResponse:
        """Run one stateless micro-batch through the route.

        Raises:
            InvalidArgument: lengths, inputs or outputs that do not fit the model.
            Unavailable: a stage of the route was lost.
            DeadlineExceeded: the deadline passed.
        """
        batch_inputs = self._inputs(request)
        outputs = list(request.outputs) or list(self._replica.model.default_outputs)
        steps = [
            Step(session=request.session, kind=STEP_KIND_STATELESS, tokens=length)
            for length in request.lengths
        ]
        steps[0].open.CopyFrom(
            StepOpen(
                route=request.route,
                deadline_unix_ms=request.deadline_unix_ms,
                traceparent=dict(inject()).get("traceparent", ""),
                outputs=outputs,
            )
        )
        own = self._replica.open_session(steps[0], 0, otel_context.get_current())
        running = self._passes[request.session] = _Pass(own, asyncio.Queue(len(outputs) + 2))
        try:
            pairs = [(own, step) for step in steps]
            await self._replica.run(Work(pairs, Batch(segments_of(pairs), inputs=batch_inputs), []))
            made: dict[int, Tensor] = {}
            while len(made) < len(outputs):
                index, view = await self._next(running)
                made[index] = Tensor(
                    name=outputs[index], dtype=view.dtype, shape=view.shape, data=bytes(view.data)
                )
            response = ForwardResponse(outputs=[made[index] for index in sorted(made)])
            response.loads.extend(running.timings.loads.values())
            response.timings.extend(running.timings.stages())
            return response
        finally:
            if self._passes.get(request.session) is running:
                del self._passes[request.session]
            self._replica.close_session(own)

    def on_result(self, result: StepResult, tensor: TensorView | None, hops: list[HopRecord]) -> None:
        """An output came back; unknown sessions are those that were cancelled meanwhile."""
        running = self._passes.get(result.session)
        if running is not None and result.epoch == running.own.epoch:
            running.timings.add(hops)
            if tensor is not None:
                running.events.put_nowait((result.output_index, tensor))

    def on_error(self, error: SessionError) -> None:
        """It failed on the way."""
        running = self._passes.get(error.session)
        if running is not None and error.epoch == running.own.epoch and not running.events.full():
            running.events.put_nowait(from_session_error(error, running.own.open))

    async def _next(self, running: _Pass) -> tuple[int, TensorView]:
        deadline_ms = running.own.open.deadline_unix_ms
        left = deadline_ms / 1000 - time.time() if deadline_ms else None
        try:
            event = await asyncio.wait_for(running.events.get(), left)
        except TimeoutError:
            raise DeadlineExceeded("the request's deadline passed while it ran") from None
        if isinstance(event, StagemeshError):
            raise event
        return event

    def _inputs(self, request: ForwardRequest) -> dict[str, torch.Tensor]:
        """The model's inputs, checked."""
        if not request.route or request.route[0].replica_id != self._replica.replica_id:
            raise InvalidArgument("route: it does not begin at this replica", field="route")
        if not request.lengths or min(request.lengths) < 1:
            raise InvalidArgument("lengths: every sample needs at least one row", field="lengths")
        tensors: dict[str, TensorView] = {}
        for tensor in request.inputs:
            if tensor.name in tensors:
                raise InvalidArgument(f"inputs: {tensor.name[:40]!r} is given twice", field="inputs")
            check_layout(tensor.dtype, tensor.shape, len(tensor.data), tensor.name)
            tensors[tensor.name] = TensorView(
                tensor.dtype, tuple(tensor.shape), memoryview(tensor.data), tensor.name
            )
        return self._replica.model.inputs_of(tensors, request.lengths)
