"""Chooses one replica per stage for a session. Pure; clock and random generator come in as arguments."""

import random
import re
from collections.abc import Collection, Sequence

from stagemesh.errors import InvalidArgument, Unavailable
from stagemesh.prefix import BLOCK
from stagemesh.v1 import registry_pb2, stage_pb2

from .loads import Loads
from .membership import Membership
from .policies import BY_PREFIX, NOTHING_ASKED, POLICIES, Ask, Policy
from .policies.zones import nearby
from .prefixes import Prefixes, Reuse

RETRY_AFTER_S = 1.0
MAX_HOPS = 4096
"""Hops kept ready; replicas come and go."""
MAX_POLICIES = 4096
"""Policies' state kept; models come and go."""


class Routing:
    """Applies the policies; keeps one policy instance for each stage of each model. `zone` is this router's own.

    `prefixes` is what replicas hold, as far as somebody has them tell it.
    """

    def __init__(self, membership: Membership, loads: Loads, *, default_policy: str, zone: str = "") -> None:
        self.prefixes = Prefixes()
        # Models whose requests asked for the policy themselves.
        self._asked_by_prefix: set[str] = set()
        self._membership = membership
        self._loads = loads
        self._default = default_policy
        self._zone = zone
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
        ask: Ask = NOTHING_ASKED,
    ) -> list[stage_pb2.RouteHop]:
        """A route for `spec`, stage 0 first.

        The policy is that of `override`, of the spec as it is now, or the default. Replicas in `avoid`, and those whose health is
        in doubt, are taken only where a stage has no other; a session with nothing to avoid may be the canary of one.
        Each stage prefers the zone of the one before, the first one the router's own.

        Raises:
            Unavailable: a stage has no ready replica, in the zones allowed if there are any.
            InvalidArgument: `override` is unknown.
        """
        name = self._policy(spec, override)
        route: list[stage_pb2.RouteHop] = []
        zone = self._zone
        stages = self._membership.ready(spec)
        reuse = self._reuse(spec, name, stages, ask) if name == BY_PREFIX else None
        for stage, replicas in enumerate(stages):
            if reuse is not None:
                ask = ask.holding(reuse.at(stage))
            chosen = self._one(spec, stage, replicas, name, now, rng, avoid, ask, zone)
            if reuse is not None:
                reuse.chose(stage, chosen.replica_id)
            zone = chosen.zone
            route.append(self._hop(stage, chosen.replica_id, chosen.address))
        if not route:
            raise Unavailable(
                f"model {spec.name!r} has not been cut into stages yet", retry_after_s=RETRY_AFTER_S
            )
        return route

    def choose_stage(
        self,
        spec: registry_pb2.ModelSpec,
        stage: int,
        now: float,
        rng: random.Random,
        *,
        override: str = "",
        avoid: Collection[str] = (),
        ask: Ask = NOTHING_ASKED,
    ) -> stage_pb2.RouteHop:
        """A replica of one stage, to take the place of one that was lost. Raises what `choose` does."""
        stages = self._membership.ready(spec)
        replicas = stages[stage] if stage < len(stages) else []
        name = self._policy(spec, override)
        if (reuse := self._reuse(spec, name, [replicas], ask)) is not None:
            ask = ask.holding(reuse.at(0))
        chosen = self._one(spec, stage, replicas, name, now, rng, avoid, ask, self._zone)
        return self._hop(stage, chosen.replica_id, chosen.address)

    @property
    def asked_by_prefix(self) -> int:
        """Models that go by prefixes only because requests asked for it."""
        return len(self._asked_by_prefix)

    def goes_by_prefix(self, spec: registry_pb2.ModelSpec) -> bool:
        """Whether somebody should have the model's replicas tell what they hold."""
        return spec.name in self._asked_by_prefix or self._policy(spec, "") == BY_PREFIX

    def spared(self, route: Sequence[stage_pb2.RouteHop], ask: Ask) -> int:
        """Tokens of the prompt that the route is expected not to compute."""
        if not len(ask.token_ids) or not all(self.prefixes.reports(hop.replica_id) for hop in route):
            return 0
        stages = [[hop.replica_id] for hop in route]
        return Reuse(self.prefixes, stages, ask.blocks, len(ask.token_ids)).most * BLOCK

    def _reuse(
        self,
        spec: registry_pb2.ModelSpec,
        name: str,
        stages: Sequence[Sequence[registry_pb2.ReplicaRecord]],
        ask: Ask,
    ) -> Reuse | None:
        """What the stages hold of the prompt, where the policy asks for it."""
        if name != BY_PREFIX or not len(ask.token_ids):
            return None
        if not self.goes_by_prefix(spec) and len(self._asked_by_prefix) < MAX_POLICIES:
            self._asked_by_prefix.add(spec.name)
        ids = [[each.replica_id for each in replicas] for replicas in stages]
        return Reuse(self.prefixes, ids, ask.blocks, len(ask.token_ids))

    def _policy(self, spec: registry_pb2.ModelSpec, override: str) -> str:
        name = override or spec.policy or self._default
        if name in POLICIES:
            return name
        if override:
            raise InvalidArgument(
                f"x-stagemesh-policy: no policy {override[:40]!r}; there are {', '.join(sorted(POLICIES))}",
                field="x-stagemesh-policy",
            )
        return self._default  # of a newer version than this router

    def _one(
        self,
        spec: registry_pb2.ModelSpec,
        stage: int,
        replicas: Sequence[registry_pb2.ReplicaRecord],
        name: str,
        now: float,
        rng: random.Random,
        avoid: Collection[str],
        ask: Ask,
        zone: str,
    ) -> registry_pb2.ReplicaRecord:
        health = self._loads.health
        if replicas:
            health.examine((spec.name, stage), replicas, now)
        allowed = replicas
        if spec.zones or ask.zone:
            allowed = [each for each in replicas if _within(each.zone, spec.zones, ask.zone)]
        if not allowed:
            where = f" in the zones it may use ({len(replicas)} elsewhere)" if replicas else ""
            raise Unavailable(
                f"model {spec.name!r} has no ready replica for stage {stage} of {len(spec.partitions)}{where}",
                retry_after_s=RETRY_AFTER_S,
            )
        if avoid:
            allowed = [each for each in allowed if each.replica_id not in avoid] or allowed
        allowed = health.pick(allowed, now, rng, canary=not avoid)
        if len(allowed) == 1:
            return allowed[0]
        policy = self._policies.get((spec.name, stage, name))
        if policy is None:
            if len(self._policies) >= MAX_POLICIES:
                self._policies.clear()
            policy = self._policies[spec.name, stage, name] = POLICIES[name]()
        candidates = nearby(self._loads.candidates(allowed, whole=allowed is replicas), zone, now)
        chosen = policy.choose(candidates, now, rng, ask).replica_id
        return next(each for each in allowed if each.replica_id == chosen)

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


def _within(zone: str, zones: Collection[str], asked: str) -> bool:
    """Whether a replica in `zone` may be used by a model limited to `zones` and a request limited to `asked`."""
    return (not zones or zone in zones) and (not asked or zone == asked)


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
