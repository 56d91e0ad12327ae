"""The encoder of a model's semantic cache: one that is deployed, or what it names becomes a model of its own. Pure.

So vectors are made where everything is computed: routers and caches need no torch, the encoder has replicas, balance
and recovery like any model, and several models share one.
"""

import math
from collections.abc import Mapping

from stagemesh import records
from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec, Semantic

from .desired import name_of

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULTS = Semantic(allowed_false_hit_rate=0.01, confidence=0.95, verify_share=0.05, min_similarity=0.8)
_LIMITS = {
    "allowed_false_hit_rate": (1e-5, 0.5),
    "confidence": (0.5, 0.9999),
    "verify_share": (0.0, 1.0),
    "min_similarity": (0.3, 0.999),
}


def check_semantic(given: Semantic) -> Semantic:
    """The settings with what was left out filled in; raises `InvalidArgument` naming the field."""
    wanted = Semantic()
    wanted.CopyFrom(given)
    for field, (least, most) in _LIMITS.items():
        value = getattr(wanted, field)
        left_out = not wanted.HasField("verify_share") if field == "verify_share" else value == 0
        if left_out:
            setattr(wanted, field, getattr(DEFAULTS, field))
        elif not (math.isfinite(value) and least * 0.9999 <= value <= most * 1.0001):
            raise InvalidArgument(
                f"semantic.{field}: {value:g} is not within {least:g}..{most:g}", field=f"semantic.{field}"
            )
    if not wanted.encoder:
        wanted.encoder = DEFAULT_ENCODER
    return wanted


def encoder_of(semantic: Semantic, models: Mapping[str, ModelSpec]) -> tuple[str, DeployRequest | None]:
    """The name of the encoder, and how to deploy it when it is not there yet.

    Raises `InvalidArgument` when a deployed model of that name is no encoder, or is another one.
    """
    named = semantic.encoder
    if (held := models.get(named)) is None:
        name = records.check_name(name_of(named))
        held = models.get(name)
        if held is None:
            return name, DeployRequest(source=named, name=name)
        if held.source != named and named != DEFAULT_ENCODER:
            raise InvalidArgument(
                f"semantic.encoder: a model {name!r} is deployed from somewhere else; deploy this one under another name, "
                "and say that",
                field="semantic.encoder",
            )
    if held.task != "embed":
        raise InvalidArgument(
            f"semantic.encoder: model {held.name!r} is for {held.task!r} and gives no vectors of texts",
            field="semantic.encoder",
        )
    return held.name, None
