import pytest
from stagemesh.services.router.cache.controls import NONE, CacheControls, controls_of

from stagemesh.errors import InvalidArgument
from stagemesh.v1.inference_pb2 import CacheControl, CacheReplay, EmbedRequest, GenerateRequest, InferRequest

OWN = "x-stagemesh-cache-"


def of(metadata=None, **control):
    request = InferRequest()
    if control:
        request.cache_control.CopyFrom(CacheControl(**control))
    return controls_of(metadata or {}, request)


def test_a_request_that_says_nothing():
    assert of() is NONE
    assert of({"x-request-id": "1", "x-stagemesh-policy": "p"}) is NONE
    assert (NONE.lookup, NONE.store) == (True, True)


@pytest.mark.parametrize(
    ("metadata", "control", "expected"),
    [
        ({"cache-control": "no-cache"}, {"no_cache": True}, CacheControls(no_cache=True)),
        ({"cache-control": " No-Store "}, {"no_store": True}, CacheControls(no_store=True)),
        ({"cache-control": "max-age=7"}, {"max_age_s": 7}, CacheControls(max_age_s=7)),
        ({"cache-control": "max-age=0"}, {"max_age_s": 0}, CacheControls(max_age_s=0)),
        ({"cache-control": 'ttl="30"'}, {"ttl_s": 30}, CacheControls(ttl_s=30)),
        ({"cache-control": "namespace=a/b"}, {"namespace": "a/b"}, CacheControls(namespace="a/b")),
        ({OWN + "no-cache": "true"}, {"no_cache": True}, CacheControls(no_cache=True)),
        ({OWN + "no-store": "1"}, {"no_store": True}, CacheControls(no_store=True)),
        ({OWN + "ttl": "5"}, {"ttl_s": 5}, CacheControls(ttl_s=5)),
        ({OWN + "max-age": "5"}, {"max_age_s": 5}, CacheControls(max_age_s=5)),
        ({OWN + "namespace": "n"}, {"namespace": "n"}, CacheControls(namespace="n")),
        ({OWN + "tags": "b, a,b"}, {"tags": ["b", "a"]}, CacheControls(tags=("a", "b"))),
        ({OWN + "sampled": "True"}, {"sampled": True}, CacheControls(sampled=True)),
        (
            {OWN + "replay": "whole"},
            {"replay": CacheReplay.CACHE_REPLAY_WHOLE},
            CacheControls(replay="whole"),
        ),
        (
            {"cache-control": "no-transform, max-age=3,, no-cache", OWN + "namespace": "n"},
            {"max_age_s": 3, "no_cache": True, "namespace": "n"},
            CacheControls(max_age_s=3, no_cache=True, namespace="n"),
        ),
    ],
    ids=str,
)
def test_headers_and_the_message_say_the_same(metadata, control, expected):
    assert of(metadata) == of(None, **control) == expected


def test_the_message_goes_before_the_headers():
    both = of({"cache-control": "max-age=3, ttl=9, no-cache"}, max_age_s=5, namespace="n")
    assert both == CacheControls(max_age_s=5, ttl_s=9, no_cache=True, namespace="n")
    assert of({OWN + "no-cache": "false", "cache-control": "no-cache"}).lookup


@pytest.mark.parametrize(
    ("metadata", "field", "words"),
    [
        ({"cache-control": "no-chache"}, "cache-control", "'no-chache'"),
        ({"cache-control": "only-if-cached"}, "cache-control", "'only-if-cached'"),
        ({"cache-control": "no-cache, sampled"}, "cache-control", "'sampled'"),
        ({"cache-control": "max-age"}, "cache-control", "max-age"),
        ({"cache-control": "max-age=-1"}, "cache-control", "max-age"),
        ({"cache-control": "max-age=99999999999"}, "cache-control", "max-age"),
        ({"cache-control": "ttl=0"}, "cache-control", "ttl"),
        ({"cache-control": "no-cache=maybe"}, "cache-control", "no-cache"),
        ({OWN + "colour": "red"}, OWN + "colour", "'colour'"),
        ({OWN + "ttl": "1.5"}, OWN + "ttl", "1.5"),
        ({OWN + "no-cache": ""}, OWN + "no-cache", "true or false"),
        ({OWN + "namespace": ""}, OWN + "namespace", "namespace"),
        ({OWN + "namespace": "a b"}, OWN + "namespace", "namespace"),
        ({OWN + "namespace": "x" * 129}, OWN + "namespace", "namespace"),
        ({OWN + "tags": "a,,b"}, OWN + "tags", "tag"),
        ({OWN + "tags": ",".join("abcdefghi")}, OWN + "tags", "8"),
        ({OWN + "replay": "slowly"}, OWN + "replay", "chunks or whole"),
    ],
    ids=str,
)
def test_what_is_unknown_or_wrong_is_refused_by_name(metadata, field, words):
    with pytest.raises(InvalidArgument) as caught:
        of(metadata)
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("control", "field"),
    [
        ({"ttl_s": 0}, "cache_control.ttl_s"),
        ({"ttl_s": 2**32 - 1}, "cache_control.ttl_s"),
        ({"namespace": "a,b"}, "cache_control.namespace"),
        ({"tags": [""]}, "cache_control.tags"),
        ({"replay": 77}, "cache_control.replay"),
    ],
    ids=str,
)
def test_a_wrong_message_is_refused_by_its_field(control, field):
    with pytest.raises(InvalidArgument) as caught:
        of(None, **control)
    assert caught.value.field == field


def test_a_control_of_a_later_version_is_refused_by_its_number():
    request = EmbedRequest()
    request.cache_control.MergeFromString(b"\xf8\x06\x01")  # field 111
    with pytest.raises(InvalidArgument, match="111"):
        controls_of({}, request)


def test_the_older_fields_mean_one_thing_each():
    assert (of().lookup, of().store) == (True, True)
    looked = controls_of({}, GenerateRequest(cache_no_store=True))
    assert (looked.lookup, looked.store) == (True, False)
    stored = controls_of({}, GenerateRequest(cache_no_lookup=True))
    assert (stored.lookup, stored.store) == (False, True)
    neither = of({"cache-control": "no-store"})
    assert (neither.lookup, neither.store) == (False, False)
