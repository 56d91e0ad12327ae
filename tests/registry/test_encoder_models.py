"""The encoder of a semantic cache: named, or made a model of its own; settings by their fields."""

import pytest
from stagemesh.services.registry.encoders import DEFAULT_ENCODER, check_semantic, encoder_of

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import ModelSpec, Semantic

EMBED = ModelSpec(name="e", task="embed", source="/models/e")


def test_what_is_left_out_is_filled_in():
    found = check_semantic(Semantic(enabled=True))
    assert found.encoder == DEFAULT_ENCODER
    assert found.allowed_false_hit_rate == pytest.approx(0.01)
    assert (found.verify_share, found.HasField("verify_share")) == (pytest.approx(0.05), True)
    assert check_semantic(Semantic(verify_share=0.0)).verify_share == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("allowed_false_hit_rate", 0.6),
        ("allowed_false_hit_rate", -0.1),
        ("allowed_false_hit_rate", float("nan")),
        ("confidence", 1.0),
        ("verify_share", 1.5),
        ("min_similarity", 0.1),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(field, value):
    with pytest.raises(InvalidArgument) as error:
        check_semantic(Semantic(**{field: value}))
    assert error.value.field == f"semantic.{field}"


def test_a_deployed_encoder_is_used_by_its_name_or_its_source():
    models = {"e": EMBED}
    assert encoder_of(Semantic(encoder="e"), models) == ("e", None)
    assert encoder_of(Semantic(encoder="/models/e"), models) == ("e", None)


def test_another_is_deployed():
    name, request = encoder_of(Semantic(encoder=DEFAULT_ENCODER), {"e": EMBED})
    assert name == "all-MiniLM-L6-v2"
    assert (request.source, request.name) == (DEFAULT_ENCODER, name)


@pytest.mark.parametrize("encoder", ["g", "/elsewhere/e"])
def test_what_cannot_be_the_encoder_is_refused(encoder):
    models = {"e": EMBED, "g": ModelSpec(name="g", task="generate", source="/models/g")}
    with pytest.raises(InvalidArgument) as error:
        encoder_of(Semantic(encoder=encoder), models)
    assert error.value.field == "semantic.encoder"
