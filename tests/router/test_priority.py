import pytest
from stagemesh.services.router.admission.priority import HEADER, Priority, asked_priority
from stagemesh.services.router.context import asked_timeout

from stagemesh.errors import InvalidArgument, PermissionDenied


def test_the_classes_and_what_goes_without_saying():
    assert [asked_priority(name) for name in ("high", "normal", "low", " LOW ", "")] == [0, 1, 2, 2, 1]
    assert asked_priority("", Priority.LOW) is Priority.LOW, "a caller who says nothing gets what it may have"
    assert asked_priority("low", Priority.NORMAL) is Priority.LOW


@pytest.mark.parametrize("name", ["urgent", "0", "high,low", "h" * 1000])
def test_an_unknown_class_is_named(name):
    with pytest.raises(InvalidArgument) as caught:
        asked_priority(name)
    assert caught.value.field == HEADER
    assert len(caught.value.message) < 100


def test_above_what_the_key_allows_is_forbidden():
    with pytest.raises(PermissionDenied, match="normal at most") as caught:
        asked_priority("high", Priority.NORMAL)
    assert (caught.value.grpc_code, caught.value.http_status, caught.value.field) == (7, 403, HEADER)


def test_the_seconds_that_a_caller_waits():
    assert asked_timeout({}) is None
    assert asked_timeout({"x-stagemesh-timeout": "2.5"}) == 2.5
    for text in ("0", "-1", "nan", "inf", "soon", "1s"):
        with pytest.raises(InvalidArgument, match="seconds above 0") as caught:
            asked_timeout({"x-stagemesh-timeout": text})
        assert caught.value.field == "x-stagemesh-timeout"
