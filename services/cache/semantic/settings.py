"""What an operator allows a model's semantic layer, with defaults filled in. Pure."""

import math
from dataclasses import dataclass

from stagemesh.v1.registry_pb2 import Semantic

DEFAULT_ALLOWED = 0.01
DEFAULT_CONFIDENCE = 0.95
DEFAULT_VERIFY_SHARE = 0.05
DEFAULT_MIN_SIMILARITY = 0.8


@dataclass(frozen=True, slots=True)
class Settings:
    """`allowed` is the share of semantic hits that may be wrong, known with `confidence`.

    `verify_share` of hits are computed for real as well; pairs less alike than `min_similarity` are not looked at.
    """

    allowed: float = DEFAULT_ALLOWED
    confidence: float = DEFAULT_CONFIDENCE
    verify_share: float = DEFAULT_VERIFY_SHARE
    min_similarity: float = DEFAULT_MIN_SIMILARITY
    loose: bool = False


def settings_of(given: Semantic) -> Settings:
    """Never fails: a value that makes no sense is its default, for the registry has refused it long before."""
    share = given.verify_share if given.HasField("verify_share") else DEFAULT_VERIFY_SHARE
    return Settings(
        allowed=_within(given.allowed_false_hit_rate, 1e-6, 0.5, DEFAULT_ALLOWED),
        confidence=_within(given.confidence, 0.5, 0.999999, DEFAULT_CONFIDENCE),
        verify_share=_within(share, 0.0, 1.0, DEFAULT_VERIFY_SHARE),
        min_similarity=_within(given.min_similarity, 1e-6, 1.0, DEFAULT_MIN_SIMILARITY),
        loose=given.loose,
    )


def _within(value: float, least: float, most: float, default: float) -> float:
    # A float of 32 bits: 0.01 comes as 0.00999999977, and is meant as written.
    value = float(f"{value:.6g}") if math.isfinite(value) else default
    return value if least <= value <= most else default
