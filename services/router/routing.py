"""Chooses one replica per stage for a session. Pure; clock and random generator come in as arguments."""

import random
import re
from collections.abc import Collection

from stagemesh.errors import InvalidArgument, Unavailable
from stagemesh.v1 import registry_pb2, stage_pb2

from .loads import Loads
from .membership import Membership
from .policies import POLICIES, Policy

RETRY_AFTER_S = 1.0
MAX_HOPS = 4096
"""Hops kept ready; replicas come and go."""


class Routing:
    """Applies the policies; keeps one policy instance for each stage of each model."""

    def __init__(self, membership: Membership, loads: Loads, *, default_policy: str) -> None:
        self._membership = membership
        self._loads = loads
        self._default = default_policy
        self._policies: dict[tuple[str, int, str], Policy] = {}
        self._hops: dict[tuple[int, str], stage_pb2.RouteHop] = {}

    def choose(
        self,
        spec: registry_pb2.ModelSpec,
        now: float,
        rng: random.Random,
        *,
        override: str = "",
        avoid: Collection[str] = (),
    ) -> list[stage_pb2.RouteHop]:
        """A route for `spec`, stage 0 first.

        Replicas in `avoid`, and those whose connection failed a moment ago, are taken only where a stage has no
        other. Raises `Unavailable` naming the stage that has no ready replica, `InvalidArgument` for an unknown
        `override`.
        """
        name = override or spec.policy or self._default
        if name not in POLICIES:
            if override:
                raise InvalidArgument(
                    f"x-stagemesh-policy: no policy {override[:40]!r}; there are {', '.join(sorted(POLICIES))}",
                    field="x-stagemesh-policy",
                )
            name = self._default
        route = []
        for stage, replicas in enumerate(self._membership.ready(spec)):
            if not replicas:
                raise Unavailable(
                    f"model {spec.name!r} has no ready replica for stage {stage} of {len(spec.partitions)}",
                    retry_after_s=RETRY_AFTER_S,
                )
            preferred = [each for each in replicas if each.replica_id not in avoid] if avoid else replicas
            preferred = [
                each for each in preferred or replicas if not self._loads.cooling(each.replica_id, now)
            ] or (preferred or replicas)
            policy = self._policies.get((spec.name, stage, name))
            if policy is None:
                policy = self._policies[spec.name, stage, name] = POLICIES[name]()
            chosen = policy.choose(self._loads.candidates(preferred), now, rng).replica_id
            address = next(each.address for each in preferred if each.replica_id == chosen)
            route.append(self._hop(stage, chosen, address))
        if not route:
            raise Unavailable(
                f"model {spec.name!r} has not been cut into stages yet", retry_after_s=RETRY_AFTER_S
            )
        return route

    def _hop(self, stage: int, replica_id: str, address: str) -> stage_pb2.RouteHop:
        """The hop of a route; messages copy it, so the same one serves every request."""
        hop = self._hops.get((stage, replica_id))
        if hop is None or hop.address != address:
            if len(self._hops) >= MAX_HOPS:
                self._hops.clear()
            hop = stage_pb2.RouteHop(stage=stage, replica_id=replica_id, address=address)
            self._hops[stage, replica_id] = hop
        return hop

    def replicas(self, spec: registry_pb2.ModelSpec) -> int:
        """Ready replicas of the stage that has the fewest, at least 1."""
        return max(1, min(map(len, self._membership.ready(spec)), default=1))

    def has_other(
        self, spec: registry_pb2.ModelSpec, route: list[stage_pb2.RouteHop], avoid: Collection[str]
    ) -> bool:
        """Whether some stage where `route` used a replica in `avoid` has a ready one outside it."""
        stages = self._membership.ready(spec)
        return all(stages) and any(
            hop.replica_id in avoid and any(each.replica_id not in avoid for each in stages[hop.stage])
            for hop in route
            if hop.stage < len(stages)
        )


def route_header(route: list[stage_pb2.RouteHop]) -> str:
    """The route as response metadata spell it: `0=<replica_id>,1=<replica_id>`."""
    return ",".join(f"{hop.stage}={hop.replica_id}" for hop in route)


_STAGE = re.compile(r"\bstage (\d+)\b")
_HEAD_WORDS = (
    "connect",
    "socket",
    "reset",
    "recvmsg",
    "broken pipe",
    "goaway",
    "removed",
    "transport",
    "closed",
    "this node",
    "loaded here",
)
"""In the words of gRPC or of the node at the head: it cannot be reached, or the head is not there any more."""


def blame(route: list[stage_pb2.RouteHop], details: str, failed_replica: str) -> tuple[str, set[str]]:
    """Which replica broke, and which ones a retry keeps away from.

    `failed_replica` is what the head said (metadata `stagemesh-failed-replica`), or empty. Else it is a stage named
    in `details`; else, for a broken connection, the head. When nobody is named the retry avoids the whole route.
    """
    if any(hop.replica_id == failed_replica for hop in route):
        return failed_replica, {failed_replica}
    if found := _STAGE.search(details):
        for hop in route:
            if hop.stage == int(found[1]):
                return hop.replica_id, {hop.replica_id}
    if any(word in details.lower() for word in _HEAD_WORDS):
        return route[0].replica_id, {route[0].replica_id}
    return "", {hop.replica_id for hop in route}
