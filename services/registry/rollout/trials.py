"""What routers tell of the two revisions of a rollout. Pure; time comes in as an argument."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from stagemesh.v1.registry_pb2 import ModelReport, ModelSpec, RevisionTrial

from .judge import MIN_REQUESTS, Counts, look_of, worse

FRESH_S = 5.0
"""What a router told longer ago says nothing of now. It reports about once a second."""
MOST_REPORTERS = 4096


@dataclass(frozen=True)
class Finding:
    """Of one rollout at its present step; see `machine.Seen`."""

    worse: str = ""
    requests: int = 0
    enough: bool = False
    old: int | None = None
    new: int | None = None
    blind: bool = False


@dataclass
class _Step:
    """What is remembered of a rollout's step: looks taken, and how what is deployed did at the one before."""

    step_unix_ms: int
    looked: int = 0
    deployed: Counts = field(default_factory=Counts)
    before: Counts = field(default_factory=Counts)
    verdict: str = ""


@dataclass
class _Told:
    at: float
    trials: dict[tuple[str, str], RevisionTrial]


class Trials:
    """The last word of each router. Counts go up from the beginning of a step, so a report that is lost loses nothing, and
    a registry that begins to lead learns all of it from the next ones.
    """

    def __init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._steps: dict[str, _Step] = {}

    def __repr__(self) -> str:
        return f"<Trials of {len(self._told)} reporters, {len(self._steps)} rollouts>"

    def take(self, reporter: str, models: Iterable[ModelReport], now: float) -> None:
        """A router's report; each holds all that there is to tell."""
        if reporter not in self._told and len(self._told) >= MOST_REPORTERS:
            return
        trials = {(one.model, trial.revision): trial for one in models for trial in one.trials}
        self._told[reporter] = _Told(now, trials)

    def look(self, spec: ModelSpec, routers: Collection[str], now: float) -> Finding:
        """What is known of the model's rollout; `routers` are those that are there now."""
        step = self._step(spec)
        candidate = self._counts(spec, spec.rollout.to_revision)
        step.deployed = self._counts(spec, spec.rollout.from_revision)
        deployed = step.deployed
        if deployed.requests < MIN_REQUESTS:  # it gets no more: compared with what it did just before
            deployed = deployed + step.before
        look = look_of(candidate.requests)
        if deployed.requests >= MIN_REQUESTS and look > step.looked:
            step.looked = look
            step.verdict = worse(candidate, deployed, look)
        return Finding(
            worse=step.verdict,
            requests=candidate.requests,
            enough=candidate.requests >= MIN_REQUESTS,
            old=self._running(spec, spec.rollout.from_revision, routers, now),
            new=self._running(spec, spec.rollout.to_revision, routers, now),
            blind=any(name not in self._told for name in routers),
        )

    def keep(self, models: Collection[str], routers: Collection[str], now: float) -> None:
        """Forget rollouts of models other than these, and reporters that are gone."""
        for name in [name for name in self._steps if name not in models]:
            del self._steps[name]
        gone = [
            name for name, told in self._told.items() if name not in routers and now > told.at + 10 * FRESH_S
        ]
        for name in gone:
            del self._told[name]

    def _step(self, spec: ModelSpec) -> _Step:
        known = self._steps.get(spec.name)
        if known is None or known.step_unix_ms != spec.rollout.step_unix_ms:
            before = known.deployed + known.before if known is not None else Counts()
            known = self._steps[spec.name] = _Step(spec.rollout.step_unix_ms, before=before)
        return known

    def _counts(self, spec: ModelSpec, revision: str) -> Counts:
        found = Counts()
        for told in self._told.values():
            trial = told.trials.get((spec.name, revision))
            if trial is not None and trial.step_unix_ms == spec.rollout.step_unix_ms:
                found += Counts(trial.requests, trial.errors, tuple(trial.pace))
        return found

    def _running(self, spec: ModelSpec, revision: str, routers: Collection[str], now: float) -> int | None:
        """Sessions on it; None when a router has not told since the present step."""
        running = 0
        for name in routers:
            told = self._told.get(name)
            trial = told.trials.get((spec.name, revision)) if told is not None else None
            if told is None or trial is None or now > told.at + FRESH_S or trial.generation < spec.generation:
                return None
            running += trial.running
        return running
