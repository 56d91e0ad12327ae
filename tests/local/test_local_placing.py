"""A deployment that cannot come up says why."""

import pytest

from stagemesh.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from stagemesh.local import LocalMesh, deployment


@pytest.mark.mesh
async def test_refusals_reach_the_caller_in_one_line(monkeypatch):
    monkeypatch.setattr(deployment, "_STUCK_S", 1.0)
    model = "examples/demo_model/model"
    async with LocalMesh(stages=1, replicas=1, http_port=0, grpc_port=0, memory=1_000_000) as mesh:
        with pytest.raises(NotFound, match="no checkpoint folder"):
            await mesh.deploy("/no/such/folder", "a")
        with pytest.raises(InvalidArgument, match="stages: 50"):
            await mesh.deploy(model, "b", stages=50)
        with pytest.raises(FailedPrecondition, match=r"'c' needs .* bytes .* 1000000 bytes free") as refused:
            await mesh.deploy(model, "c")
        assert "\n" not in refused.value.message
        with pytest.raises(Unavailable, match=r"c cannot be placed: .*bytes") as caught:
            await mesh.deploy(model, "c", allow_pending=True)
        assert "\n" not in caught.value.message
