"""Open Inference Protocol (KServe v2) with `ModelStreamInfer`: the core, for clients that speak it."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc.aio

from stagemesh.errors import NotFound, StagemeshError
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.oip import open_inference_pb2_grpc as oip_grpc
from stagemesh.v1 import inference_pb2, registry_pb2

from ..context import RequestContext
from ..core import RouterCore
from ..grpc_context import answered, open_context
from ..validate import check_model
from .codec import add_outputs, add_texts, check_parameters, to_tensors, uses_raw
from .generate import TEXT_OUTPUT, generation_of, has_text, only_text
from .metadata import EXTENSIONS, TEXT_TASKS, model_metadata
from .scheduling import asked_class, asked_seconds

log = logging.getLogger(__name__)


class OpenInferenceServicer(oip_grpc.GRPCInferenceServiceServicer):
    """Tensors of any rank and dtype for every model; `text_input` for generations and embeddings."""

    def __init__(self, core: RouterCore, version: str) -> None:
        self._core = core
        self._version = version

    async def ServerLive(
        self, request: oip.ServerLiveRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ServerLiveResponse:
        """Whether the process answers."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: oip.ServerReadyRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ServerReadyResponse:
        """Whether the router knows the mesh."""
        return oip.ServerReadyResponse(ready=self._core.membership.listed)

    async def ModelReady(
        self, request: oip.ModelReadyRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ModelReadyResponse:
        """Whether requests are taken: each stage has a ready replica, or the model sleeps; false for an unknown one."""
        open_context(self._core, rpc)
        try:
            spec = self._spec(request.name, request.version)
        except NotFound:
            return oip.ModelReadyResponse(ready=False)
        known = self._core.membership
        return oip.ModelReadyResponse(ready=known.is_ready(spec) or known.asleep(spec))

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ServerMetadataResponse:
        """Name, version and extensions."""
        return oip.ServerMetadataResponse(name="stagemesh", version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        open_context(self._core, rpc)
        return model_metadata(self._spec(request.name, request.version))

    async def ModelInfer(
        self, request: oip.ModelInferRequest, rpc: grpc.aio.ServicerContext
    ) -> oip.ModelInferResponse:
        """One answer; a generation's whole text."""
        ctx = self._context(request, rpc)
        spec = self._spec(request.model_name, request.model_version)
        if spec.task == "generate" and has_text(request):
            return await self._whole_text(request, spec, ctx, rpc)
        check_parameters(request)
        if spec.task in TEXT_TASKS and has_text(request):
            embedding = await self._core.embed(
                inference_pb2.EmbedRequest(model=spec.name, texts=only_text(request)), ctx
            )
            answered(rpc, ctx, embedding.cache, embedding.route)
            embedding.embeddings.name = "sentence_embedding"
            return self._tensors(request, spec, [embedding.embeddings])
        inferred = await self._core.infer(
            inference_pb2.InferRequest(
                model=spec.name,
                inputs=to_tensors(request),
                outputs=[output.name for output in request.outputs],
            ),
            ctx,
        )
        answered(rpc, ctx, inferred.cache, inferred.route)
        return self._tensors(request, spec, list(inferred.outputs))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[oip.ModelInferRequest], rpc: grpc.aio.ServicerContext
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Requests one after the other; a generation answers with a response a chunk, the last one marked final.

        A request that fails answers with `error_message`, and the stream goes on.
        """
        async for request in requests:
            try:
                ctx = self._context(request, rpc)
                spec = self._spec(request.model_name, request.model_version)
                if spec.task == "generate" and has_text(request):
                    generation, ended = generation_of(request), 0
                    async with aclosing(self._core.generate(generation, ctx)) as chunks:
                        async for chunk in chunks:
                            response = self._texts(request, spec, [chunk.text])
                            response.parameters["index"].int64_param = chunk.index
                            ended += bool(chunk.finish_reason)
                            final = ended == (generation.n or 1)
                            response.parameters["triton_final_response"].bool_param = final
                            yield oip.ModelStreamInferResponse(infer_response=response)
                else:
                    response = await self.ModelInfer(request, rpc)
                    response.parameters["triton_final_response"].bool_param = True
                    yield oip.ModelStreamInferResponse(infer_response=response)
            except StagemeshError as error:
                yield oip.ModelStreamInferResponse(
                    error_message=error.message, infer_response=oip.ModelInferResponse(id=request.id)
                )
            except Exception:
                log.exception("rpc.failed method=ModelStreamInfer")
                yield oip.ModelStreamInferResponse(
                    error_message="internal error", infer_response=oip.ModelInferResponse(id=request.id)
                )

    def _context(self, request: oip.ModelInferRequest, rpc: grpc.aio.ServicerContext) -> RequestContext:
        return open_context(self._core, rpc, asked_class(request), asked_seconds(request))

    async def _whole_text(
        self,
        request: oip.ModelInferRequest,
        spec: registry_pb2.ModelSpec,
        ctx: RequestContext,
        rpc: grpc.aio.ServicerContext,
    ) -> oip.ModelInferResponse:
        parts: list[list[str]] = []
        async with aclosing(self._core.generate(generation_of(request), ctx)) as chunks:
            async for chunk in chunks:
                if chunk.request_id:
                    answered(rpc, ctx, chunk.cache, chunk.route, chunk.semantic)
                while len(parts) <= chunk.index:
                    parts.append([])
                parts[chunk.index].append(chunk.text)
        return self._texts(request, spec, ["".join(each) for each in parts])

    def _spec(self, name: str, version: str) -> registry_pb2.ModelSpec:
        """The model; its version is its revision, or empty."""
        spec = check_model(name, self._core.membership.models, field="model_name")
        if version not in ("", spec.revision):
            raise NotFound(
                f"model_version: model {spec.name!r} has no version {version[:80]!r}", field="model_version"
            )
        return spec

    def _tensors(
        self, request: oip.ModelInferRequest, spec: registry_pb2.ModelSpec, tensors: list
    ) -> oip.ModelInferResponse:
        response = _response(request, spec)
        add_outputs(response, tensors, request)
        return response

    def _texts(
        self, request: oip.ModelInferRequest, spec: registry_pb2.ModelSpec, texts: list[str]
    ) -> oip.ModelInferResponse:
        response = _response(request, spec)
        add_texts(response, TEXT_OUTPUT, texts, raw=uses_raw(request))
        return response


def _response(request: oip.ModelInferRequest, spec: registry_pb2.ModelSpec) -> oip.ModelInferResponse:
    return oip.ModelInferResponse(model_name=spec.name, model_version=spec.revision, id=request.id)
