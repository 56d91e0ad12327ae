import pytest
from stagemesh.services.router.cache.controls import controls_of

from stagemesh.client.cache_control import cache_control_of
from stagemesh.client.requests import embed_request, generate_request, infer_request
from stagemesh.errors import InvalidArgument
from stagemesh.v1.inference_pb2 import CacheControl, InferRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("no-store, ttl=60", CacheControl(no_store=True, ttl_s=60)),
        (" Max-Age = 0 ,, namespace=a/b", CacheControl(max_age_s=0, namespace="a/b")),
        ('tag=b, tag="a", sampled', CacheControl(tags=["b", "a"], sampled=True)),
        ("replay=whole", CacheControl(replay=2)),
        ("replay=chunks, no-semantic", CacheControl(replay=1, no_semantic=True)),
    ],
)
def test_a_text_is_the_message(text, expected):
    assert cache_control_of(text) == expected


@pytest.mark.parametrize(
    "text", ["no-cache", "no-store", "ttl=5", "max-age=7", "namespace=team/a", "no-cache, ttl=9, max-age=3"]
)
def test_it_means_what_the_header_means(text):
    said = InferRequest(cache_control=cache_control_of(text))
    assert controls_of({}, said) == controls_of({"cache-control": text}, InferRequest())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour=red", "no control 'colour'"),
        ("ttl", "ttl must be whole seconds"),
        ("ttl=-1", "ttl must be whole seconds"),
        ("max-age=1.5", "max-age must be whole seconds"),
        ("ttl=99999999999", "ttl must be whole seconds"),
        ("ttl=²", "ttl must be whole seconds"),
        ("no-store=yes", "no-store takes no value"),
        ("namespace", "namespace needs a name"),
        ("tag=", "tag needs a name"),
        ("replay=slow", "replay must be chunks or whole"),
        ("=5", "no control ''"),
        (7, "must be a text, not int"),
    ],
)
def test_what_is_wrong_is_named(text, why):
    with pytest.raises(InvalidArgument, match=why) as raised:
        cache_control_of(text)
    assert raised.value.field == "cache_control"


def test_every_request_carries_it():
    expected = CacheControl(ttl_s=60)
    options = {"cache_control": "ttl=60"}
    assert generate_request("m", "p", None, None, options).cache_control == expected
    assert infer_request("m", {}, (), True, "ttl=60").cache_control == expected
    assert embed_request("m", "p", "ttl=60").cache_control == expected
    assert not generate_request("m", "p", None, None, {}).HasField("cache_control")
    assert not embed_request("m", "p").HasField("cache_control")
