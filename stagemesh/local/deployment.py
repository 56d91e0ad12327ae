"""Talks to the registry: deploy, and wait until the model is ready."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio

from stagemesh.client import AsyncClient
from stagemesh.client.wire import translate
from stagemesh.errors import DeadlineExceeded, NotFound, Unavailable
from stagemesh.grpc_server import create_channel
from stagemesh.local.readiness import Readiness, readiness
from stagemesh.revisions import rolls_out
from stagemesh.v1 import registry_pb2, registry_pb2_grpc
from stagemesh.wanted import asleep

_POLL_S = 0.2
_RPC_S = 10.0
# On one machine nobody will bring another node: say so when a partition found none for this long.
_STUCK_S = 15.0
# A registry that downloads a hub checkpoint's configuration may take this long to answer.
_DEPLOY_S = 300.0


def absolute_source(source: str) -> str:
    """A local folder by its absolute path, a hub id as it is."""
    folder = Path(source).expanduser()
    return str(folder.resolve()) if folder.exists() else source


@contextlib.asynccontextmanager
async def _registry(address: str) -> AsyncIterator[registry_pb2_grpc.RegistryServiceStub]:
    """A stub whose errors are those of `stagemesh.errors`."""
    async with create_channel(address) as channel:
        try:
            yield registry_pb2_grpc.RegistryServiceStub(channel)
        except grpc.aio.AioRpcError as error:
            raise translate(error, address) from None


async def deploy(registry: str, request: registry_pb2.DeployRequest) -> registry_pb2.ModelSpec:
    """Ask the registry at `registry` (host:port); raises what it answered."""
    async with _registry(registry) as stub:
        return (await stub.Deploy(request, timeout=_DEPLOY_S)).model


async def undeploy(registry: str, name: str) -> None:
    """Remove a model; raises `NotFound` when there is none of that name."""
    async with _registry(registry) as stub:
        await stub.Undeploy(registry_pb2.UndeployRequest(name=name), timeout=_RPC_S)


async def scale(
    registry: str,
    name: str,
    replicas: int,
    stage: int | None,
    policy: str | None = None,
    scaling: registry_pb2.Scaling | None = None,
    weight: float = 0.0,
) -> registry_pb2.ModelSpec:
    """Change the replicas wanted of one stage or of every stage (0: as they are), the limits, the balancing policy, or the weight (0: as it is).

    Raises what the registry answered.
    """
    async with _registry(registry) as stub:
        request = registry_pb2.ScaleRequest(
            name=name, replicas=replicas, stage=stage, policy=policy, scaling=scaling, weight=weight
        )
        return (await stub.Scale(request, timeout=_RPC_S)).model


async def scaling(registry: str, name: str) -> registry_pb2.Scaling | None:
    """Within which limits a model scales itself; None where a fixed number holds, or nothing is deployed."""
    found = await _find(registry, name)
    return found.model.scaling if found is not None and found.model.HasField("scaling") else None


async def deployments(registry: str) -> list[registry_pb2.Deployment]:
    """Every deployed model as the registry knows it."""
    async with _registry(registry) as stub:
        answer = await stub.ListModels(registry_pb2.ListDeploymentsRequest(), timeout=_RPC_S)
        return list(answer.deployments)


async def rollout(registry: str, name: str, action: registry_pb2.RolloutAction) -> registry_pb2.ModelSpec:
    """Promote or abort a model's rollout; raises what the registry answered."""
    async with _registry(registry) as stub:
        request = registry_pb2.RolloutRequest(name=name, action=action)
        return (await stub.Rollout(request, timeout=_RPC_S)).model


async def recut(registry: str, name: str, *, dry_run: bool, force: bool) -> registry_pb2.RecutResponse:
    """Have a model's cuts weighed, and moved where that pays; raises what the registry answered."""
    async with _registry(registry) as stub:
        request = registry_pb2.RecutRequest(name=name, dry_run=dry_run, force=force)
        return await stub.Recut(request, timeout=_DEPLOY_S)


async def model(registry: str, name: str) -> registry_pb2.ModelSpec:
    """A model's record; raises `NotFound` when there is none of that name."""
    found = await _find(registry, name)
    if found is None:
        raise NotFound(f"no model {name!r} is deployed", field="name")
    return found.model


def wanted_revision(spec: registry_pb2.ModelSpec) -> str:
    """The revision that a deployment is for: the candidate's, while its rollout is under way."""
    return spec.rollout.to_revision if rolls_out(spec) else spec.revision


async def wait_in_registry(
    registry: str, name: str, progress: Callable[[str], None], timeout_s: float, revision: str = ""
) -> None:
    """Wait until the registry knows every wanted replica of the model as ready.

    With `revision` also until its rollout is over; raises `Unavailable` with the reason when that was taken back.
    """

    async def look() -> Readiness | None:
        found = await _find(registry, name)
        if found is None:
            return None
        return readiness(found.model, found.replicas, found.pending, found.scale, revision)

    await _wait(look, name, progress, timeout_s)


async def wait_in_router(
    registry: str,
    router: str,
    name: str,
    progress: Callable[[str], None],
    timeout_s: float,
    revision: str = "",
) -> None:
    """Wait until the router at `router` can send sessions to every wanted replica of the model."""

    async def look() -> Readiness | None:
        found = await _find(registry, name)
        async with AsyncClient(router, timeout_s=_RPC_S) as client:
            status = await client.status()
        known = next((model for model in status.models if model.spec.name == name), None)
        if found is None or known is None or known.spec.generation < found.model.generation:
            return None
        verdict = readiness(
            found.model, [item.record for item in status.replicas], found.pending, found.scale, revision
        )
        # A replica that failed may not be in the router's view at all.
        failed = readiness(found.model, found.replicas, revision=revision).failed
        usable = known.ready or asleep(found.model, found.scale)
        return dataclasses.replace(verdict, ready=verdict.ready and usable, failed=failed)

    await _wait(look, name, progress, timeout_s, stuck_s=_STUCK_S)


async def _find(registry: str, name: str) -> registry_pb2.Deployment | None:
    return next((item for item in await deployments(registry) if item.model.name == name), None)


async def _wait(
    look: Callable[[], Awaitable[Readiness | None]],
    name: str,
    progress: Callable[[str], None],
    timeout_s: float,
    stuck_s: float = float("inf"),
) -> None:
    deadline = time.monotonic() + timeout_s
    moved = time.monotonic()
    line = f"{name}: waiting for the registry's plan"
    said = ""
    while True:
        try:
            verdict = await look()
        except Unavailable as error:
            verdict, line = None, f"{name}: {error.message}"
        if verdict is not None:
            line = verdict.line
            if verdict.failed:
                raise Unavailable(f"{name} could not be loaded: {verdict.failed[0]}")
            if verdict.ready:
                progress(line)
                return
            if not verdict.stuck:
                moved = time.monotonic()
            elif time.monotonic() - moved > stuck_s:
                raise Unavailable(f"{name} cannot be placed: {verdict.stuck}")
        if line != said:
            progress(line)
            said = line
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{name} was not ready within {timeout_s:.0f} s: {line}")
        await asyncio.sleep(_POLL_S)
