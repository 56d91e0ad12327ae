"""A stage node that misbehaves on purpose: it breaks streams, sends garbage, is slow, or simply answers.

It computes nothing, so it can only show what the router makes of an answer; whole meshes are in tests/mesh.
"""

import asyncio

import grpc
import numpy as np
from stagemesh.services.stage.forward_stream import forward_stream

from stagemesh.errors import InternalError, InvalidArgument, ResourceExhausted, Unavailable
from stagemesh.grpc_server import GrpcServer
from stagemesh.local_door import offer_door
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1 import stage_pb2, stage_pb2_grpc
from stagemesh.v1.stage_pb2 import ReplicaLoad, SessionEvent, Token

HIDDEN = 4


class ScriptedStage(stage_pb2_grpc.StageServiceServicer):
    """Gives tokens 10, 11, 12, ... up to max_tokens, from where a session stands. `mode` says how it goes wrong."""

    # Whether streams of micro-batches may go on over Unix sockets.
    doors = True

    def __init__(self, mode="good"):
        self.mode = mode
        self.labels = 0
        self.score = float
        self.opened = []
        self.rerouted = []
        self.goes_on = asyncio.Event()
        self.forwarded = []
        self.cancelled = 0
        self.unary = 0
        self.opened_streams = 0
        self.metadata = []
        self.release = asyncio.Event()
        self.door = GrpcServer("127.0.0.1", 0)
        stage_pb2_grpc.add_StageServiceServicer_to_server(self, self.door.server)

    async def __aenter__(self):
        self.port = await self.door.start(["stagemesh.v1.StageService"])
        self.address = f"127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        await self.door.stop(0)

    async def Generate(self, request, context):
        self.opened.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.mode == "1b is gone" and request.route[1].replica_id == "1b":
            raise Unavailable("stage 1 cannot be reached")
        try:
            done = len(request.token_ids) - request.prompt_tokens
            assert list(request.token_ids[request.prompt_tokens :]) == [10 + n for n in range(done)]
            for index in range(done, request.max_tokens):
                await self._misbehave(index, context)
                if self.mode.startswith("lose ") and index == 2 and not self.rerouted:
                    yield self._lost(request)
                    await self.goes_on.wait()
                id_ = 999_999 if self.mode == "strange token" and index == 1 else 10 + index
                event = SessionEvent(tokens=[Token(id=id_, position=request.prompt_tokens + index)])
                event.tokens[0].alternatives.add(id=1, logprob=-1.0)
                last = index == request.max_tokens - 1
                if id_ in request.stop_token_ids:
                    event.finish_reason = stage_pb2.FINISH_REASON_STOP
                elif last and self.mode != "end early":
                    event.finish_reason = stage_pb2.FINISH_REASON_LENGTH
                event.loads.extend(
                    ReplicaLoad(replica_id=hop.replica_id, step_ms=5, sessions=1) for hop in request.route
                )
                yield event
                if event.finish_reason:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            # The latter when the cancellation comes while gRPC sends an event.
            self.cancelled += 1
            raise

    def _lost(self, request):
        """ "lose 1": the replica of stage 1 died; "lose 1 code": it is well, and answered with that code."""
        _, stage, *code = self.mode.split()
        gone = stage_pb2.LostReplica(
            stage=int(stage), code=int(code[0]) if code else 14, message="Socket closed"
        )
        gone.replica_id = request.route[gone.stage].replica_id if gone.stage < len(request.route) else "who?"
        return SessionEvent(lost=gone)

    async def Reroute(self, request, context):
        self.rerouted.append(request)
        if self.mode.endswith(" 9"):  # FAILED_PRECONDITION: it is told again, and then forgets all of it
            self.mode = "good"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "what was sent is not kept any more")
        self.goes_on.set()
        return stage_pb2.RerouteResponse()

    async def ForwardStream(self, requests, context):
        if self.mode == "no streams":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        self.opened_streams += 1
        self.stream_metadata = dict(context.invocation_metadata())
        broken = asyncio.Event()

        async def forward(request):
            if self.mode == "break the stream":
                self.forwarded.append(request)
                await self.release.wait()
                broken.set()
            return await self._forward(request, context)

        raw = (request.SerializeToString() async for request in requests)
        by_socket = self.doors and self.mode != "break the stream"
        door = await offer_door(context) if by_socket else None
        async for reply in forward_stream(raw, forward, door=door):
            if broken.is_set():
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            yield stage_pb2.ForwardReply.FromString(reply)

    async def Forward(self, request, context):
        self.unary += 1
        return await self._forward(request, context)

    async def _forward(self, request, context):
        self.forwarded.append(request)
        try:
            await self._misbehave(0, context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.mode.startswith("bad row ") and self._has_row(
            request, int(self.mode.removeprefix("bad row "))
        ):
            raise InternalError("internal error")
        if self.mode == "shuffle":  # later parts come back first
            await asyncio.sleep(0.2 / len(self.forwarded))
        if request.inputs[0].name != "input_ids":
            return self._samples(request)
        ids = to_numpy(request.inputs[0])
        assert len(ids) == sum(request.lengths), "padding reached the stage"
        loads = [ReplicaLoad(replica_id=hop.replica_id, step_ms=5) for hop in request.route]
        answer = stage_pb2.ForwardResponse(loads=loads)
        ends = np.cumsum(request.lengths)
        for name in request.outputs:
            if name == "logits" and self.labels:
                rows = [self.score(ids[end - n : end]) for n, end in zip(request.lengths, ends, strict=True)]
                array = np.array(rows, np.float32).reshape(len(rows), -1)
            elif name == "sentence_embedding":
                sums = [ids[end - n : end].sum() for n, end in zip(request.lengths, ends, strict=True)]
                array = np.repeat(np.array(sums, np.float32)[:, None], HIDDEN, axis=1)
            else:
                array = np.repeat(ids.astype(np.float32)[:, None], HIDDEN, axis=1)
            answer.outputs.append(from_numpy(name, array[1:] if self.mode == "missing row" else array))
        return answer

    def _samples(self, request):
        """Each output `NAME_out` is the input NAME."""
        assert set(request.lengths) == {1}
        answer = stage_pb2.ForwardResponse(
            loads=[ReplicaLoad(replica_id=hop.replica_id, step_ms=5) for hop in request.route]
        )
        inputs = {each.name: each for each in request.inputs}
        assert all(each.shape[0] == len(request.lengths) for each in request.inputs)
        for name in request.outputs:
            given = answer.outputs.add()
            given.CopyFrom(inputs[name.removesuffix("_out")])
            given.name = name
        if self.mode == "too few outputs":
            del answer.outputs[-1]
        if self.mode == "cut payload":
            answer.outputs[0].data = answer.outputs[0].data[:-1]
        return answer

    @staticmethod
    def _has_row(request, number):
        first = request.inputs[0]
        return number in to_numpy(first).reshape(len(request.lengths), -1)[:, 0]

    async def GetNodeStatus(self, request, context):
        return stage_pb2.NodeStatus(
            node_id="n",
            partitions=[
                stage_pb2.PartitionStatus(replica_id="0a", load=ReplicaLoad(replica_id="0a", sessions=3))
            ],
        )

    async def _misbehave(self, index, context):
        if self.mode == "break first" and index == 0:
            raise Unavailable("stage 1 was lost: Socket closed")
        if self.mode == "fault" and index == 0:
            raise InternalError("internal error")
        if self.mode == "gone" and index == 0:
            raise Unavailable("Socket closed")
        if self.mode == "break later" and index == 2:
            raise Unavailable("stage 1 was lost: Socket closed")
        if self.mode in ("break once", "vanish once") and index == 2:
            words = "stage 1 was lost: " if self.mode == "break once" else ""
            self.mode = "good"
            raise Unavailable(f"{words}Socket closed")
        if self.mode == "no memory" and index == 0:
            raise ResourceExhausted("no KV memory", retry_after_s=0.5)
        if self.mode == "bug" and index == 0:
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        if self.mode == "refuse" and index == 0:
            raise InvalidArgument("x: is not what it should be", field="x")
        if self.mode == "hold" and index == 0:
            await self.release.wait()
        if self.mode == "hang" and index == 2:
            await self.release.wait()
