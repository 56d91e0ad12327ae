"""What of a stateless inference is looked up and stored. Pure."""

from collections.abc import Sequence
from functools import partial

from stagemesh.v1 import inference_pb2, registry_pb2

from ..context import RequestContext
from ..validate_tensors import Batch
from .believe import embed_fault, infer_fault
from .controls import CacheControls
from .flight import CacheUse
from .key import embed_key, infer_key


def infer_use(
    request: inference_pb2.InferRequest,
    batch: Batch,
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    controls: CacheControls,
) -> CacheUse[inference_pb2.InferResponse] | None:
    """Of named tensors; None where the model is not cached, or nothing is to be looked up or stored."""
    if not (spec.cache and (controls.lookup or controls.store)):
        return None
    names = [each.name for each in batch.outputs]
    key = infer_key(spec, ctx.tenant, request.inputs, names, controls.namespace)
    return CacheUse(
        tenant=ctx.tenant,
        key=key,
        spec=spec,
        kind=inference_pb2.InferResponse,
        fault=partial(infer_fault, spec=spec, outputs=batch.outputs, rows=len(batch.lengths)),
        deadline=ctx.deadline,
        controls=controls,
    )


def embed_use(
    rows: Sequence[Sequence[int]],
    spec: registry_pb2.ModelSpec,
    ctx: RequestContext,
    controls: CacheControls,
) -> CacheUse[inference_pb2.EmbedResponse] | None:
    """Of tokenised texts; None as for tensors."""
    if not (spec.cache and (controls.lookup or controls.store)):
        return None
    key = embed_key(spec, ctx.tenant, rows, controls.namespace)
    return CacheUse(
        tenant=ctx.tenant,
        key=key,
        spec=spec,
        kind=inference_pb2.EmbedResponse,
        fault=partial(embed_fault, rows=len(rows), tokens=sum(map(len, rows))),
        deadline=ctx.deadline,
        controls=controls,
    )
