"""The admin RPCs: they check a request, read the checkpoint, and write the desired state to etcd."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from stagemesh import checkpoint, records
from stagemesh.errors import DeadlineExceeded, InvalidArgument, NotFound, StagemeshError
from stagemesh.etcd import Etcd
from stagemesh.revisions import rolls_out
from stagemesh.v1.registry_pb2 import (
    ROLLOUT_ACTION_ABORT,
    ROLLOUT_ACTION_PROMOTE,
    Deployment,
    DeployRequest,
    DeployResponse,
    EventRecord,
    EventsRequest,
    ListDeploymentsRequest,
    ListDeploymentsResponse,
    LoadReport,
    ModelSpec,
    RecutRequest,
    RecutResponse,
    ReportPace,
    RolloutRequest,
    RolloutResponse,
    ScaleRequest,
    ScaleResponse,
    UndeployRequest,
    UndeployResponse,
    WakeRequest,
    WakeResponse,
)
from stagemesh.v1.registry_pb2_grpc import RegistryServiceServicer

from .controller import Controller
from .desired import build_spec, check_deploy, same_settings, scaled
from .encoders import check_semantic, encoder_of
from .event_log import events
from .events import Events
from .mirror import Mirror
from .models import Models
from .planned import Placed, kept, wish_of
from .planned_certified import plan_certified
from .reports import ReportDoor
from .rollout.begin import aborted, deployed, promoted, way_of
from .rollout.recuts import Recuts
from .room import check_room
from .scales import Scales

log = logging.getLogger(__name__)

# A hub may be slow; a folder takes milliseconds.
_READ_CHECKPOINT_S = 120.0
_READERS = 4

_Read = tuple[checkpoint.Checkpoint, str, str]


class Registry(RegistryServiceServicer):
    """Desired state is written with compare-and-put, so that requests at several registries do not get lost."""

    def __init__(
        self,
        etcd: Etcd,
        mirror: Mirror,
        controller: Controller,
        scales: Scales,
        events: Events,
        reports: ReportDoor,
        models: Models,
        recuts: Recuts,
        most_nodes: int = 0,
    ) -> None:
        self._etcd = etcd
        self._mirror = mirror
        self._models = models
        self._recuts = recuts
        self._controller = controller
        self._scales = scales
        self._events = events
        self._reports = reports
        self._most_nodes = most_nodes
        self._readers = asyncio.Semaphore(_READERS)

    async def Deploy(self, request: DeployRequest, context: grpc.aio.ServicerContext) -> DeployResponse:
        """Create the model, or replace it when the request differs from what is deployed."""
        name = check_deploy(request)
        found, source, hub_revision = await self._read(request)
        await self._with_encoder(request, found.task, context)
        placed = await self._placed(name, request, found)
        wanted = build_spec(name, request, found, source=source, hub_revision=hub_revision, placed=placed)
        way = way_of(request.canary, request.canary_s)

        waits = ""

        def change(current: ModelSpec | None) -> ModelSpec:
            nonlocal waits
            world = self._mirror.world()
            serves = current is not None and world.serves(current)
            spec = deployed(current, wanted, way, serves=serves, now_ms=int(time.time() * 1000))
            if not request.allow_pending and (current is None or not same_settings(current, spec)):
                waits = check_room(world, spec, self._most_nodes)
            return spec

        spec = await self._models.update(name, change)
        if waits:
            self._events.note("deploy.waits", name, waits)
        if rolls_out(spec) and spec.rollout.to_revision == wanted.revision:
            self._events.note(
                "rollout.begun", name, f"revision {wanted.revision[:12]} beside {spec.revision[:12]}"
            )
        return DeployResponse(model=spec)

    async def _with_encoder(
        self, request: DeployRequest, task: str, context: grpc.aio.ServicerContext
    ) -> None:
        """Of a model whose answers may be given by meaning: its encoder by name, deployed if it was not yet."""
        if not request.semantic.enabled:
            request.ClearField("semantic")
            return
        if task != "generate":
            raise InvalidArgument(f"semantic: a model for {task!r} gives no texts", field="semantic")
        request.semantic.CopyFrom(check_semantic(request.semantic))
        encoder, missing = encoder_of(request.semantic, self._mirror.world().models)
        if missing is not None:
            try:
                await self.Deploy(missing, context)
            except StagemeshError as error:
                raise type(error)(f"semantic.encoder: {error.message}", field="semantic.encoder") from None
        request.semantic.encoder = encoder

    async def Rollout(self, request: RolloutRequest, context: grpc.aio.ServicerContext) -> RolloutResponse:
        """Bring a rollout to its end, or take it back."""
        name = records.check_name(request.name)
        if request.action not in (ROLLOUT_ACTION_PROMOTE, ROLLOUT_ACTION_ABORT):
            raise InvalidArgument("action: promote or abort", field="action")

        def change(current: ModelSpec | None) -> ModelSpec:
            now_ms = int(time.time() * 1000)
            if current is None:
                raise _unknown(name)
            if request.action == ROLLOUT_ACTION_PROMOTE:
                return promoted(current, now_ms)
            return aborted(current, "aborted by an operator", now_ms)

        spec = await self._models.update(name, change)
        what = "promoted" if request.action == ROLLOUT_ACTION_PROMOTE else "aborted"
        self._events.note(
            f"rollout.{what}", name, f"an operator {what} revision {spec.rollout.to_revision[:12]}"
        )
        return RolloutResponse(model=spec)

    async def Recut(self, request: RecutRequest, context: grpc.aio.ServicerContext) -> RecutResponse:
        """Weigh a model's cuts by what its nodes measure, and move them where that pays."""
        name = records.check_name(request.name)
        return await self._recuts.recut(name, dry_run=request.dry_run, force=request.force)

    async def Scale(self, request: ScaleRequest, context: grpc.aio.ServicerContext) -> ScaleResponse:
        """Change the replicas wanted of one stage or of all."""
        records.check_name(request.name)

        def change(current: ModelSpec | None) -> ModelSpec:
            if current is None:
                raise _unknown(request.name)
            return scaled(current, request)

        return ScaleResponse(model=await self._models.update(request.name, change))

    async def Undeploy(self, request: UndeployRequest, context: grpc.aio.ServicerContext) -> UndeployResponse:
        """Remove the model; its partitions are taken from the nodes by the leading controller."""
        if not await self._models.remove(records.check_name(request.name)):
            raise _unknown(request.name)
        log.info("registry.undeployed model=%s", request.name)
        return UndeployResponse()

    async def Wake(self, request: WakeRequest, context: grpc.aio.ServicerContext) -> WakeResponse:
        """Give a model that sleeps its replicas again; the leading registry places them at once."""
        name = records.check_name(request.name)
        woken = await self._scales.wake(name, "a request came for it")
        if woken:
            self._events.note("scale.wake", name, "a request came while it slept")
        return WakeResponse(woken=woken)

    async def Report(
        self, request_iterator: AsyncIterator[LoadReport], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[ReportPace]:
        """Take what a node or a router has to do, for as long as this registry leads."""
        async with aclosing(self._reports.stream(request_iterator)) as paces:  # type: ignore[type-var]
            async for pace in paces:
                yield pace

    async def Events(
        self, request: EventsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[EventRecord]:
        """What was decided, and with `follow` what is."""
        async with aclosing(events(self._etcd, request)) as found:  # type: ignore[type-var]
            async for record in found:
                yield record

    async def ListModels(
        self, request: ListDeploymentsRequest, context: grpc.aio.ServicerContext
    ) -> ListDeploymentsResponse:
        """Every model with its replicas and with what no node can take."""
        world = self._mirror.world()
        by_stage = sorted(world.replicas.values(), key=lambda record: (record.stage, record.replica_id))
        return ListDeploymentsResponse(
            deployments=[
                Deployment(
                    model=spec,
                    replicas=[record for record in by_stage if record.model == name],
                    pending=self._controller.pending.get(name, []),
                    scale=world.scales.get(name),
                )
                for name, spec in sorted(world.models.items())
            ]
        )

    async def _placed(self, name: str, request: DeployRequest, found: checkpoint.Checkpoint) -> Placed | None:
        """Where the planner puts the model; None where it was not asked."""
        wish = wish_of(request)
        if wish is None:
            return None
        world = self._mirror.world()
        current = world.models.get(name)
        known = kept(current, wish, found, request.dtype)
        if known is not None:
            return known
        busy = self._recuts.busy_for_others(name, time.monotonic())
        async with self._readers:  # up to seconds
            return await asyncio.to_thread(
                plan_certified, request, found, name, wish, world, int(time.time() * 1000), busy
            )

    async def _read(self, request: DeployRequest) -> _Read:
        try:
            async with asyncio.timeout(_READ_CHECKPOINT_S), self._readers:
                return await asyncio.to_thread(_read_checkpoint, request.source, request.hub_revision)
        except TimeoutError as error:
            raise DeadlineExceeded("the checkpoint could not be read in time", field="source") from error


def _read_checkpoint(source: str, hub_revision: str) -> _Read:
    """Blocking: the checkpoint, and source and revision by which every node finds the same one."""
    if checkpoint.is_local(source):
        if hub_revision:
            raise InvalidArgument("hub_revision: a local folder has none", field="hub_revision")
        folder = checkpoint.resolve(source)
        return checkpoint.inspect(folder), str(folder), ""
    commit = checkpoint.resolve(source, hub_revision).name
    return checkpoint.inspect_source(source, commit), source, commit


def _unknown(name: str) -> NotFound:
    return NotFound(f"no model {name!r} is deployed", field="name")
