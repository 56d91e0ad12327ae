"""Parity certificates: what a comparison of a split model with the whole one found, and which splits it vouches for.

`stagemesh verify MODEL --stages N` makes one for a checkpoint; `parity.json` holds those of small random checkpoints
of every architecture that was tried, made by `make parity`. Reading them needs neither torch nor transformers.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from stagemesh.checkpoint import Checkpoint
from stagemesh.errors import CheckpointError, FailedPrecondition

# More stages than this have ends and middles as this many have.
GENERAL = 3


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a comparison found. Errors are absolute, on float32 outputs.

    Attributes:
        architecture: class of the model, as config.json names it.
        model_type: its family.
        task: what it is served for, see `ModelSpec.task`.
        revision: digest of the checkpoint; empty for a made-up one, which speaks for its whole family.
        stages: partitions.
        cuts: layer boundaries, first and last included.
        dtype: computed in.
        path: "fused", "ragged" or "own-cache" for language models, "stateless" for others.
        max_abs_error: largest difference.
        scale: largest absolute value of the whole model's output.
        tokens_compared: greedy tokens that were compared; 0 for others than language models.
        tokens_equal: of them.
        passed: split and whole agree.
        reason: why not, in one line.
        torch: its version; transformers likewise.
        transformers: see torch.
    """

    architecture: str
    model_type: str
    task: str
    revision: str
    stages: int
    cuts: tuple[int, ...]
    dtype: str
    path: str
    max_abs_error: float
    scale: float
    tokens_compared: int
    tokens_equal: int
    passed: bool
    reason: str
    torch: str
    transformers: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, by field."""
        return {**asdict(self), "cuts": list(self.cuts)}


def from_json(given: object) -> Certificate:
    """The certificate that `to_json` wrote.

    Raises:
        CheckpointError: it is none, naming the field.
    """
    if not isinstance(given, Mapping):
        raise CheckpointError("certificate: not a JSON object", field="certificate")
    values: dict[str, Any] = {}
    for one in fields(Certificate):
        value = given.get(one.name)
        if one.name == "cuts":
            right = isinstance(value, list) and all(type(cut) is int for cut in value)
            value = tuple(value or ()) if right else None
        elif one.type in ("float", float):
            right = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            right = type(value) is {"str": str, "int": int, "bool": bool}.get(str(one.type), one.type)
        if not right:
            raise CheckpointError(
                f"certificate: {one.name} is missing or of another type", field="certificate"
            )
        values[one.name] = value
    return Certificate(**values)


def read(text: str) -> Certificate:
    """A certificate from the file that `stagemesh verify --out` wrote.

    Raises:
        CheckpointError: it is none, naming the field.
    """
    try:
        return from_json(json.loads(text))
    except ValueError as error:
        raise CheckpointError(f"certificate: not JSON: {error}", field="certificate") from None


@cache
def shipped() -> tuple[Certificate, ...]:
    """The certificates that come with this version."""
    file = resources.files("stagemesh") / "parity.json"
    return tuple(from_json(one) for one in json.loads(file.read_text())) if file.is_file() else ()


def vouched(
    certificates: Iterable[Certificate], *, model_type: str, task: str, revision: str, stages: int
) -> bool:
    """Whether a split may be served: it is none, or a certificate of this checkpoint or of its family says so.

    A package of an exported module needs none: it was compared with the module when it was made, and every node compares its
    pieces with what it held then. A family's certificates for two and for three stages (first, middle and last partitions) stand for every number;
    that of one checkpoint for its own.
    """
    if stages <= 1 or task == "tensor":
        return True
    passed: set[int] = set()
    for one in certificates:
        if not one.passed or (one.model_type, one.task) != (model_type, task):
            continue
        if one.revision:
            if one.revision == revision and one.stages == stages:
                return True
        else:
            passed.add(one.stages)
    return stages in passed or (2 in passed and GENERAL in passed)


def require(certificates: Iterable[Certificate], found: Checkpoint, source: str, stages: int) -> None:
    """Do nothing when a certificate vouches for the checkpoint in that many stages.

    Raises:
        FailedPrecondition: none does; says what to do, and names `stages`.
    """
    if not vouched(
        certificates, model_type=found.model_type, task=found.task, revision=found.revision, stages=stages
    ):
        raise FailedPrecondition(
            f"stages: no certificate shows that {found.architecture} in {stages} stages gives what the whole model "
            f"does; run `stagemesh verify {source} --stages {stages} --out FILE` and come back with --certificate "
            "FILE, or use --force",
            field="stages",
        )
