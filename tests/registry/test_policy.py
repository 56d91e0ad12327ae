"""The balancing policy is a part of the desired state that changes without anything being loaded anew."""

import pytest
from stagemesh.services.registry.desired import POLICIES, scaled
from stagemesh.services.router.policies import POLICIES as ROUTERS

from stagemesh import records
from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import ModelSpec, ScaleRequest
from tests.registry.assigned import model
from tests.registry.test_registry_process import deploy


def test_the_registry_knows_the_routers_policies() -> None:
    assert set(POLICIES) == set(ROUTERS)


def test_policy_and_replicas_change_alone_or_together() -> None:
    spec = model("m", [1, 1], replicas=2)
    spec.policy = "round_robin"
    changed = scaled(spec, ScaleRequest(name="m", policy="weighted"))
    assert (changed.policy, list(changed.replicas)) == ("weighted", [2, 2])
    changed = scaled(spec, ScaleRequest(name="m", replicas=3, stage=1))
    assert (changed.policy, list(changed.replicas)) == ("round_robin", [2, 3])
    changed = scaled(spec, ScaleRequest(name="m", replicas=4, policy="default"))
    assert (changed.policy, list(changed.replicas)) == ("", [4, 4])


@pytest.mark.parametrize(
    ("request_", "field"),
    [(ScaleRequest(name="m"), "replicas"), (ScaleRequest(name="m", policy="best"), "policy")],
)
def test_nothing_to_change_or_an_unknown_policy_names_the_field(request_: ScaleRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        scaled(model("m", [1]), request_)
    assert caught.value.field == field


async def test_the_registry_writes_it_and_nothing_is_loaded_anew(
    start_registry, start_node, until, etcd
) -> None:
    node = await start_node("n0")
    registry = await start_registry()
    before = (await registry.stub.Deploy(deploy(replicas=1))).model
    await until(lambda: len(node.assigned) == 2)
    held = set(node.assigned)
    after = (await registry.stub.Scale(ScaleRequest(name="demo", policy="least_loaded"))).model
    assert (after.policy, after.revision, after.generation) == ("least_loaded", before.revision, 2)
    stored = await etcd.get(records.model_key("demo"))
    assert records.from_json(stored.value, ModelSpec) == after
    assert set(node.assigned) == held
