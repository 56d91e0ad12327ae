"""A router's InferenceService that follows a script, on a real socket."""

import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np

from stagemesh.errors import ResourceExhausted
from stagemesh.grpc_errors import to_status
from stagemesh.grpc_server import channel_options
from stagemesh.tensor import from_numpy, to_numpy
from stagemesh.v1 import inference_pb2, inference_pb2_grpc, registry_pb2, stage_pb2

ROUTE = [
    stage_pb2.RouteHop(stage=0, replica_id="a0", address="127.0.0.1:1"),
    stage_pb2.RouteHop(stage=1, replica_id="b1", address="127.0.0.1:2"),
]


class ScriptedRouter(inference_pb2_grpc.InferenceServiceServicer):
    """Answers every model but "missing" and "busy"; keeps what it was sent."""

    def __init__(self):
        self.requests = []
        self.services = []
        self.spec = registry_pb2.ModelSpec(name="demo", task="generate")
        self.metadata = []
        self.deadlines = []
        self.cancelled = threading.Event()

    def _note(self, request, context):
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())
        if request.model == "busy":
            code, message, metadata = to_status(
                ResourceExhausted("too many", field="model", retry_after_s=1.5)
            )
            context.set_trailing_metadata(metadata)
            context.abort(code, message)
        if request.model == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "model 'missing' is not deployed")

    def Generate(self, request, context):
        self._note(request, context)
        context.add_callback(self.cancelled.set)
        yield inference_pb2.GenerateResponse(
            text="Hel",
            tokens=[stage_pb2.Token(id=7, logprob=-0.5)],
            request_id="r-1",
            cache=inference_pb2.CACHE_STATUS_MISS,
            route=ROUTE,
            timings=[stage_pb2.StageTiming(stage=0, replica_id="a0", steps=1, compute_us=900)],
        )
        if request.n > 1:
            token = stage_pb2.Token(id=3, logprob=-1)
            token.alternatives.add(id=4, logprob=-0.25)
            usage = inference_pb2.Usage(prompt_tokens=4, completion_tokens=1)
            yield inference_pb2.GenerateResponse(text="B", tokens=[token], index=1)
            yield inference_pb2.GenerateResponse(finish_reason="stop", usage=usage, index=1)
        if request.model == "endless":
            while context.is_active():
                yield inference_pb2.GenerateResponse(text="x", tokens=[stage_pb2.Token(id=1)])
                threading.Event().wait(0.01)
            return
        if request.model == "breaks":
            context.abort(grpc.StatusCode.UNAVAILABLE, "replica b1 went away")
        yield inference_pb2.GenerateResponse(text="lo", tokens=[stage_pb2.Token(id=8), stage_pb2.Token(id=9)])
        yield inference_pb2.GenerateResponse(
            finish_reason="length",
            usage=inference_pb2.Usage(prompt_tokens=4, completion_tokens=3),
            timings=[
                stage_pb2.StageTiming(
                    stage=0, replica_id="a0", steps=3, compute_us=1500, bubble_us=250, rows=12
                )
            ],
        )

    def Infer(self, request, context):
        self._note(request, context)
        doubled = [from_numpy(item.name + "_x2", to_numpy(item, "x") * 2) for item in request.inputs]
        return inference_pb2.InferResponse(
            model=request.model,
            revision="rev",
            outputs=doubled,
            request_id="r-2",
            cache=inference_pb2.CACHE_STATUS_BYPASS,
            route=ROUTE,
        )

    def Embed(self, request, context):
        self._note(request, context)
        vectors = np.array([[len(text), 1.0] for text in request.texts], dtype=np.float32)
        return inference_pb2.EmbedResponse(
            embeddings=from_numpy("", vectors),
            usage=inference_pb2.Usage(prompt_tokens=len(request.texts)),
            cache=inference_pb2.CACHE_STATUS_HIT,
        )

    def ListModels(self, request, context):
        return inference_pb2.ListModelsResponse(models=[inference_pb2.ModelInfo(spec=self.spec, ready=True)])

    def GetMeshStatus(self, request, context):
        record = registry_pb2.ReplicaRecord(
            replica_id="a0",
            model="demo",
            stage=0,
            stages=2,
            partition=registry_pb2.Partition(first_layer=0, end_layer=4),
            node_id="node-0",
            address="127.0.0.1:1",
            pid=4242,
            state=registry_pb2.REPLICA_STATE_READY,
        )
        load = stage_pb2.ReplicaLoad(replica_id="a0", queue_depth=2, sessions=3, step_ms=1.25)
        return inference_pb2.MeshStatus(
            replicas=[inference_pb2.ReplicaStatus(record=record, load=load, sessions_routed=9)],
            models=self.ListModels(None, None).models,
            nodes=[registry_pb2.NodeRecord(node_id="node-0", pid=4242)],
            services=self.services,
            etcd_connected=True,
        )


@contextmanager
def running_router():
    """The servicer, with its `address`."""
    servicer = ScriptedRouter()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=channel_options())
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(0).wait()
