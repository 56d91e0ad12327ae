"""A model's record may hold two specs at once: the one that is deployed, and the candidate of a rollout. Pure."""

from stagemesh.v1.registry_pb2 import (
    ROLLOUT_STATE_BACKING_OUT,
    ROLLOUT_STATE_DRAINING,
    ROLLOUT_STATE_LOADING,
    ROLLOUT_STATE_SHARING,
    ModelSpec,
)

__all__ = ["candidate_of", "checkpoint_revision", "rolls_out", "spec_of", "specs_of"]

_ACTIVE = frozenset(
    (ROLLOUT_STATE_LOADING, ROLLOUT_STATE_SHARING, ROLLOUT_STATE_DRAINING, ROLLOUT_STATE_BACKING_OUT)
)


def rolls_out(spec: ModelSpec) -> bool:
    """Whether a rollout of the model is under way."""
    return spec.HasField("rollout") and spec.rollout.state in _ACTIVE and spec.rollout.HasField("next")


def candidate_of(spec: ModelSpec) -> ModelSpec | None:
    """The candidate's spec while a rollout is under way."""
    return spec.rollout.next if rolls_out(spec) else None


def specs_of(spec: ModelSpec) -> list[ModelSpec]:
    """Every spec that has replicas: the deployed one, then the candidate."""
    candidate = candidate_of(spec)
    return [spec] if candidate is None else [spec, candidate]


def spec_of(spec: ModelSpec, revision: str) -> ModelSpec | None:
    """The one of that revision."""
    return next((one for one in specs_of(spec) if one.revision == revision), None)


def checkpoint_revision(revision: str) -> str:
    """The weights' part of a revision, which is `<checkpoint>-<settings>`."""
    return revision.partition("-")[0]
