"""What `Scale` and `Deploy` make of limits."""

import pytest
from stagemesh.services.registry.desired import check_deploy, scaled

from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import DeployRequest, ModelSpec, Partition, ScaleRequest, Scaling

SPEC = ModelSpec(name="m", partitions=[Partition(), Partition()], replicas=[1, 2])
LIMITS = Scaling(min_replicas=0, max_replicas=4, target_queue_ms=20)


def test_limits_are_taken_and_a_fixed_number_takes_them_away() -> None:
    itself = scaled(SPEC, ScaleRequest(scaling=LIMITS))
    assert itself.scaling == LIMITS
    assert list(itself.replicas) == [1, 2]
    assert scaled(itself, ScaleRequest(policy="weighted")).scaling == LIMITS
    fixed = scaled(itself, ScaleRequest(replicas=3))
    assert not fixed.HasField("scaling")
    assert list(fixed.replicas) == [3, 3]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ScaleRequest(scaling=Scaling(min_replicas=3, max_replicas=2)), "scaling.max_replicas"),
        (ScaleRequest(scaling=Scaling(target_kv=2)), "scaling.target_kv"),
        (ScaleRequest(scaling=LIMITS, replicas=2), "scaling"),
        (ScaleRequest(), "replicas"),
    ],
    ids=["order", "share", "both", "nothing"],
)
def test_a_request_that_makes_no_sense_is_refused_by_name(request_: ScaleRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        scaled(SPEC, request_)
    assert refused.value.field == field


def test_a_deployment_with_limits_that_make_no_sense_is_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_deploy(DeployRequest(source="a", scaling=Scaling(idle_s=2**31)))
    assert refused.value.field == "scaling.idle_s"
    assert check_deploy(DeployRequest(source="a", scaling=LIMITS)) == "a"
