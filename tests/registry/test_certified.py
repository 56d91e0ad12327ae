"""A split is deployed when a certificate vouches for it, or when it is asked for all the same."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from stagemesh.services.registry.desired import build_spec

from stagemesh.checkpoint import Checkpoint, inspect
from stagemesh.errors import FailedPrecondition, InvalidArgument
from stagemesh.parity import Certificate
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec

DEMO = Path(__file__).parents[2] / "examples" / "demo_model" / "model"


@pytest.fixture
def found() -> Checkpoint:
    """A checkpoint of a family that nobody has certified."""
    known = inspect(DEMO)
    return replace(known, model_type="unheard-of", architecture="UnheardOfForCausalLM")


def certificate(found: Checkpoint, **changes: object) -> str:
    own = Certificate(
        architecture=found.architecture,
        model_type=found.model_type,
        task="generate",
        revision=found.revision,
        stages=2,
        cuts=(0, 1, 2),
        dtype="F32",
        path="own-cache",
        max_abs_error=0.0,
        scale=1.0,
        tokens_compared=64,
        tokens_equal=64,
        passed=True,
        reason="",
        torch="2",
        transformers="5",
    )
    return json.dumps(replace(own, **changes).to_json())  # type: ignore[arg-type]


def spec(found: Checkpoint, **request: object) -> ModelSpec:
    wanted = DeployRequest(source="/somewhere/private", stages=2, **request)  # type: ignore[arg-type]
    return build_spec("m", wanted, found, source="/somewhere/private", hub_revision="")


def test_an_unknown_split_is_refused_and_the_message_says_what_to_do(found: Checkpoint) -> None:
    with pytest.raises(
        FailedPrecondition, match=r"UnheardOfForCausalLM in 2 stages.*stagemesh verify"
    ) as refused:
        spec(found)
    assert refused.value.field == "stages"
    assert "private" not in refused.value.message


def test_the_whole_model_is_served_without(found: Checkpoint) -> None:
    wanted = DeployRequest(source="x", stages=1)
    assert not build_spec("m", wanted, found, source="x", hub_revision="").uncertified


def test_forced_it_is_deployed_and_says_so(found: Checkpoint) -> None:
    assert spec(found, force=True).uncertified


def test_its_own_certificate_will_do(found: Checkpoint) -> None:
    assert not spec(found, certificate=certificate(found)).uncertified


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"revision": "0" * 32}, "another checkpoint"),
        ({"stages": 3}, "3 stages"),
        ({"passed": False, "reason": "7 of 64 tokens differ"}, "7 of 64"),
    ],
)
def test_a_certificate_of_something_else_is_refused(found: Checkpoint, changes: dict, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why) as refused:
        spec(found, certificate=certificate(found, **changes))
    assert refused.value.field == "certificate"
    with pytest.raises(InvalidArgument, match="JSON"):
        spec(found, certificate="{")


def test_certified_families_need_nothing() -> None:
    known = inspect(DEMO)
    wanted = DeployRequest(source="x", stages=2)
    assert not build_spec("m", wanted, known, source="x", hub_revision="").uncertified
