"""`stagemesh.v1.InferenceService`: the core, over gRPC. Errors are translated by the server's interceptor."""

from contextlib import aclosing

import grpc.aio

from stagemesh.v1 import inference_pb2, inference_pb2_grpc

from .core import RouterCore
from .grpc_context import answered, open_context, said_in_message


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The router's own API."""

    def __init__(self, core: RouterCore) -> None:
        self._core = core

    async def Generate(self, request: inference_pb2.GenerateRequest, rpc: grpc.aio.ServicerContext) -> None:
        """Stream a generation."""
        ctx = open_context(self._core, rpc)
        first = True
        # Written from here: a scope that is left cancels what waits, and that may be a write.
        with self._core.hand_over.scope():
            async with aclosing(self._core.generate(request, ctx)) as responses:
                async for response in responses:
                    if first:
                        answered(rpc, ctx, response.cache, response.route, response.semantic)
                        first = False
                    await rpc.write(response)

    async def Infer(
        self, request: inference_pb2.InferRequest, rpc: grpc.aio.ServicerContext
    ) -> inference_pb2.InferResponse:
        """Stateless inference on tensors."""
        ctx = open_context(self._core, rpc)
        with self._core.hand_over.scope():
            response = await self._core.infer(request, ctx)
        said_in_message(rpc)
        return response

    async def Embed(
        self, request: inference_pb2.EmbedRequest, rpc: grpc.aio.ServicerContext
    ) -> inference_pb2.EmbedResponse:
        """Texts to vectors."""
        ctx = open_context(self._core, rpc)
        with self._core.hand_over.scope():
            response = await self._core.embed(request, ctx)
        said_in_message(rpc)
        return response

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, rpc: grpc.aio.ServicerContext
    ) -> inference_pb2.ListModelsResponse:
        """Every deployed model."""
        open_context(self._core, rpc)
        return inference_pb2.ListModelsResponse(models=self._core.models())

    async def GetMeshStatus(
        self, request: inference_pb2.GetMeshStatusRequest, rpc: grpc.aio.ServicerContext
    ) -> inference_pb2.MeshStatus:
        """The router's view of the mesh."""
        open_context(self._core, rpc)
        return await self._core.status()
