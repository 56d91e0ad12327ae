"""Which splits a certificate vouches for, and which files are certificates."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.errors import CheckpointError
from stagemesh.parity import Certificate, from_json, read, shipped, vouched

FAMILY = Certificate(
    architecture="LlamaForCausalLM",
    model_type="llama",
    task="generate",
    revision="",
    stages=2,
    cuts=(0, 3, 6),
    dtype="F32",
    path="fused",
    max_abs_error=1e-6,
    scale=3.0,
    tokens_compared=64,
    tokens_equal=64,
    passed=True,
    reason="",
    torch="2",
    transformers="5",
)


def vouches(
    *certificates: Certificate, stages: int, revision: str = "abc", model_type: str = "llama"
) -> bool:
    return vouched(certificates, model_type=model_type, task="generate", revision=revision, stages=stages)


def test_a_whole_model_needs_no_certificate() -> None:
    assert vouches(stages=1)


def test_a_family_in_two_and_three_stages_stands_for_every_number() -> None:
    both = (FAMILY, replace(FAMILY, stages=3))
    assert all(vouches(*both, stages=stages) for stages in (2, 3, 4, 40))
    assert vouches(FAMILY, stages=2)
    assert not vouches(FAMILY, stages=3)
    assert not vouches(FAMILY, stages=4)
    assert not vouches(*both, stages=2, model_type="mistral")


def test_a_failed_certificate_vouches_for_nothing() -> None:
    assert not vouches(replace(FAMILY, passed=False, reason="3 of 64 tokens differ"), stages=2)


def test_a_checkpoints_own_certificate_is_for_it_and_its_number_of_stages() -> None:
    own = replace(FAMILY, revision="abc", stages=4)
    assert vouches(own, stages=4)
    assert not vouches(own, stages=2)
    assert not vouches(own, stages=4, revision="abd")


def test_certificates_are_read_as_they_were_written() -> None:
    assert read(json.dumps(FAMILY.to_json())) == FAMILY


@pytest.mark.parametrize("field", [one.name for one in fields(Certificate)])
@given(value=st.sampled_from([None, [], {}, "x", 1.5, True, ["a"]]))
def test_a_field_of_another_type_is_named(field: str, value: object) -> None:
    good = FAMILY.to_json()
    try:
        found = from_json({**good, field: value})
    except CheckpointError as error:
        assert field in error.message  # noqa: PT017
        assert error.field == "certificate"  # noqa: PT017
    else:
        assert type(getattr(found, field)) in (type(getattr(FAMILY, field)), tuple, float)
    with pytest.raises(CheckpointError, match=field):
        from_json({name: value for name, value in good.items() if name != field})


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '"x"'])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError):
        read(text)


def test_the_shipped_ones_are_of_families() -> None:
    assert shipped()
    assert all(not one.revision for one in shipped())
