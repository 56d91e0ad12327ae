"""Requests to a model that sleeps wait here, while one call asks a registry to wake it.

1. A request finds no route. When its model may sleep (`scaling.min_replicas` is 0), it is held: until its deadline, until
   its caller leaves, or until every stage of the model has a ready replica.
2. The first one held starts the one task that calls `RegistryService.Wake`, at one registry after another until one
   answers, and again every few seconds: what was decided may have been lost, or taken back.
3. The watch on etcd says when the model is ready (`changed`), and everybody goes on at once.

A bounded number of requests is held, of all models; who comes after that is told when to come again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc.aio
from opentelemetry.trace import Span

from stagemesh.errors import DeadlineExceeded, NotFound, ResourceExhausted, StagemeshError, Unavailable
from stagemesh.grpc_errors import from_rpc_error
from stagemesh.v1 import registry_pb2

from .channels import Channels
from .membership import Membership
from .telemetry import Telemetry

log = logging.getLogger(__name__)

CALL_S = 2.0
"""What a registry may take to answer; then another one is asked."""
AGAIN_S = 5.0
"""A model that was woken and is still not ready is woken once more."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
"""Between rounds in which no registry answered."""
ALONE_S = 5.0
"""Without any registry for so long there is no hope."""
FIRST_GUESS_S, SHORTEST_S, LONGEST_S = 2.0, 0.1, 30.0
"""What a caller who is not held is told to wait: what the last waking took, within bounds."""
# What a registry says that asking again, or elsewhere, would not change.
_FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)


@dataclass(slots=True, eq=False)
class _Wake:
    """A model that is being woken."""

    began: float
    held: int = 0
    task: asyncio.Task[None] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    # Why nobody needs to wait any longer although it is not ready.
    error: StagemeshError | None = None


class Waking:
    """Holds requests to models that sleep, and has these woken.

    Args:
        membership: the view of the mesh.
        channels: to registries, and to nodes that will be needed soon.
        telemetry: where it is counted.
        max_held: requests held at once, of all models.
        on_awake: called with the model's name before those who waited go on.
        rng: chooses the registry.
    """

    def __init__(
        self,
        membership: Membership,
        channels: Channels,
        telemetry: Telemetry,
        *,
        max_held: int,
        on_awake: Callable[[str], None] = lambda model: None,
        rng: random.Random | None = None,
    ) -> None:
        self.held = 0
        self._membership = membership
        self._channels = channels
        self._telemetry = telemetry
        self._max_held = max_held
        self._on_awake = on_awake
        self._rng = rng or random.Random()
        self._wakes: dict[str, _Wake] = {}
        # Seconds that the last waking of a model took.
        self._took: dict[str, float] = {}
        self._ending: set[asyncio.Task[None]] = set()
        telemetry.held.set_function(lambda: self.held)

    def __repr__(self) -> str:
        return f"Waking(held={self.held}/{self._max_held}, {sorted(self._wakes)})"

    def held_of(self, model: str) -> int:
        """Requests that wait for that model to wake."""
        wake = self._wakes.get(model)
        return wake.held if wake is not None else 0

    def needed(self, spec: registry_pb2.ModelSpec) -> bool:
        """Whether a request for the model has to be held now."""
        return may_sleep(spec) and not self._membership.is_ready(spec)

    async def hold(self, spec: registry_pb2.ModelSpec, deadline: float, parent: Span | None = None) -> None:
        """Return when every stage of the model has a ready replica; `deadline` is in monotonic seconds.

        The span of the wait, below `parent`, goes on in the registry and in the nodes that load, for the one that wakes.

        Raises:
            ResourceExhausted: too many wait already.
            DeadlineExceeded: it did not wake in time.
            NotFound: it was undeployed meanwhile.
            Unavailable: there is no registry to wake it.
        """
        with self._telemetry.span("router.hold", parent):
            await self._hold(spec, deadline)

    async def _hold(self, spec: registry_pb2.ModelSpec, deadline: float) -> None:
        name, now = spec.name, time.monotonic()
        if self.held >= self._max_held:
            self._telemetry.not_held.labels(name).inc()
            raise ResourceExhausted(
                f"model {name!r} sleeps, and {self.held} requests wait for models to wake already",
                retry_after_s=self._retry_after_s(name, now),
            )
        wake = self._wakes.get(name)
        if wake is None:
            log.info("model.waking %s", name)
            wake = self._wakes[name] = _Wake(began=now)
            wake.task = asyncio.create_task(self._have_woken(name, wake), name=f"wake-{name}")
        wake.held += 1
        self.held += 1
        try:
            async with asyncio.timeout(deadline - now):
                await wake.over.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"model {name!r} slept, and was not awake before the deadline{self._why_not(name)}"
            ) from None
        finally:
            wake.held -= 1
            self.held -= 1
            if not wake.held:
                self._forget(name, wake)
        if wake.error is not None:
            raise type(wake.error)(
                wake.error.message, field=wake.error.field, retry_after_s=wake.error.retry_after_s
            )

    def changed(self) -> None:
        """The view of the mesh changed: let those go on whose model is awake, or gone."""
        for name, wake in list(self._wakes.items()):
            spec = self._membership.models.get(name)
            if spec is None:
                self._fail(name, wake, NotFound(f"model: {name!r} was undeployed", field="model"))
            elif not may_sleep(spec) or self._membership.is_ready(spec):
                self._took[name] = took = time.monotonic() - wake.began
                self._telemetry.woken.labels(name).observe(took)
                log.info("model.awake %s after %.3f s, %d waited", name, took, wake.held)
                self._on_awake(name)
                self._over(name, wake)
        for gone in self._took.keys() - self._membership.models.keys():
            del self._took[gone]

    async def close(self) -> None:
        """Hold nobody any longer."""
        for name, wake in list(self._wakes.items()):
            self._fail(name, wake, Unavailable("the router is shutting down", retry_after_s=1.0))
        await asyncio.gather(*self._ending, return_exceptions=True)

    # ---- asking ----

    async def _have_woken(self, name: str, wake: _Wake) -> None:
        """Call a registry until one answers, and again as long as somebody waits."""
        self._channels.connect(node.address for node in self._membership.nodes.values() if node.address)
        pause_s, alone_since = FIRST_PAUSE_S, time.monotonic()
        while True:
            addresses = [record.address for record in self._membership.services_of("registry")]
            self._rng.shuffle(addresses)
            if addresses:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > ALONE_S:
                self._fail(
                    name,
                    wake,
                    Unavailable(
                        f"model {name!r} sleeps, and no registry is there to wake it", retry_after_s=1.0
                    ),
                )
                return
            try:
                answered = await self._ask(name, addresses)
            except StagemeshError as error:
                log.warning("model.not_woken %s: %s", name, error.message)
                self._fail(name, wake, error)
                return
            await asyncio.sleep(AGAIN_S if answered else pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = FIRST_PAUSE_S if answered else min(2 * pause_s, LONGEST_PAUSE_S)

    async def _ask(self, name: str, addresses: list[str]) -> bool:
        """One round over the registries; whether one took it. Raises what is about the model itself."""
        for address in addresses:
            try:
                await self._channels.registry(address).Wake(
                    registry_pb2.WakeRequest(name=name), timeout=CALL_S
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    raise from_rpc_error(error) from None
                # Also one that does not know the model yet: its view may be older than this one.
                log.info("model.wake_failed %s at %s: %s", name, address, error.code().name)
                continue
            self._telemetry.wakes.labels(name).inc()
            return True
        return False

    # ---- the end of it ----

    def _fail(self, name: str, wake: _Wake, error: StagemeshError) -> None:
        wake.error = error
        self._over(name, wake)

    def _over(self, name: str, wake: _Wake) -> None:
        wake.over.set()
        self._forget(name, wake)

    def _forget(self, name: str, wake: _Wake) -> None:
        """Nobody needs this one any more; who comes now begins another."""
        if self._wakes.get(name) is wake:
            del self._wakes[name]
        task, wake.task = wake.task, None
        if task is not None and task is not asyncio.current_task() and not task.done():
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _retry_after_s(self, name: str, now: float) -> float:
        wake = self._wakes.get(name)
        left = self._took.get(name, FIRST_GUESS_S) - (now - wake.began if wake is not None else 0.0)
        return round(min(max(left, SHORTEST_S), LONGEST_S), 2)

    def _why_not(self, name: str) -> str:
        """What its replicas say that could not be loaded."""
        failed = [
            f"stage {record.stage} could not be loaded: {record.detail}"
            for record in self._membership.replicas.values()
            if record.model == name and record.state == registry_pb2.REPLICA_STATE_FAILED and record.detail
        ]
        return f" ({failed[0][:200]})" if failed else ""


def may_sleep(spec: registry_pb2.ModelSpec) -> bool:
    """Whether the model is allowed to have no replicas."""
    return spec.HasField("scaling") and spec.scaling.min_replicas == 0
