"""Requests that are known by their bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.cache.controls import NONE, CacheControls
from stagemesh.services.router.cache.prepared import Prepared

from stagemesh.v1.inference_pb2 import GenerateRequest, InferRequest
from stagemesh.v1.registry_pb2 import ModelSpec
from stagemesh.v1.tensor_pb2 import Tensor

SPEC = ModelSpec(name="m", cache=True)


def known(request, tenant="t", controls=NONE, spec=SPEC, found=None):
    found = Prepared() if found is None else found
    mark = found.mark(request, spec, tenant, controls)
    found.keep(mark, spec, "prepared")
    return found


def finds(found, request, tenant="t", controls=NONE, spec=SPEC):
    return found.find(found.mark(request, spec, tenant, controls), spec) is not None


def test_the_same_request_is_known_and_no_other():
    request = GenerateRequest(model="m", prompt="a", temperature=0.0, logit_bias={1: 1.0, 2: 2.0})
    found = known(request)
    again = GenerateRequest(model="m", prompt="a", temperature=0.0, logit_bias={2: 2.0, 1: 1.0})
    assert finds(found, again)
    assert not finds(found, again, tenant="u")
    assert not finds(found, again, controls=CacheControls(max_age_s=1))
    assert not finds(found, again, controls=CacheControls(replay="whole"))
    # Unset is not 0: a sampled request is another one than a greedy one.
    assert not finds(found, GenerateRequest(model="m", prompt="a", logit_bias={1: 1.0, 2: 2.0}))


@pytest.mark.parametrize("field", [each.name for each in GenerateRequest.DESCRIPTOR.fields])
def test_every_field_makes_another_request(field):
    base = GenerateRequest(model="m", tokens={"ids": [1]})
    other = GenerateRequest()
    other.CopyFrom(base)
    described = GenerateRequest.DESCRIPTOR.fields_by_name[field]
    if described.is_repeated:
        if field == "logit_bias":
            other.logit_bias[3] = 1.0
        else:
            getattr(other, field).append("x" if described.type == described.TYPE_STRING else 7)
    elif described.message_type is not None:
        getattr(other, field).SetInParent()
        if field == "tokens":
            other.tokens.ids.append(2)
    elif described.type == described.TYPE_STRING:
        setattr(other, field, "x")
    else:
        setattr(other, field, 1)
    assert other != base
    assert not finds(known(base), other)


def test_a_model_that_is_deployed_anew_is_another_one():
    request = InferRequest(model="m", inputs=[Tensor(name="x", data=b"1")])
    found = known(request)
    anew = ModelSpec(name="m", cache=True)  # the same words, and another deployment
    assert not finds(found, request, spec=anew)
    assert len(found) == 0


@pytest.mark.parametrize(
    ("spec", "controls"),
    [
        (ModelSpec(name="m"), NONE),
        (SPEC, CacheControls(no_cache=True)),
        (SPEC, CacheControls(no_store=True)),
    ],
)
def test_who_may_not_be_answered_from_the_cache_is_not_looked_for(spec, controls):
    assert Prepared().mark(InferRequest(model="m"), spec, "t", controls) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000)), max_size=60))
def test_it_keeps_to_its_budget_and_forgets_the_least_recently_used(steps):
    found: Prepared[int] = Prepared(max_bytes=20_000)
    for number, size in steps:
        mark = found.mark(InferRequest(model=str(number)), SPEC, "t", NONE)
        found.keep(mark, SPEC, number, size)
        assert found._bytes == sum(each[2] for each in found._known.values()) <= 20_000
        assert found.find(mark, SPEC) == number
