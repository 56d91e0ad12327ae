"""What is asked of each model, counted for the registry's autoscaler and its rollouts. Pure."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from stagemesh.v1.registry_pb2 import LoadReport, ModelReport, RevisionReport


@dataclass(slots=True)
class _Ended:
    requests: int = 0
    errors: int = 0
    latency_ms_sum: float = 0.0
    latency_ms_squares: float = 0.0


@dataclass(slots=True)
class _Asked:
    arrivals: int = 0
    open: int = 0
    revisions: dict[str, _Ended] = field(default_factory=dict)


class Demand:
    """Counts per model since the last report. Only deployed models are counted, so nobody can fill it with names.

    Attributes:
        known: names of the deployed models.
        waiting: requests of a model that wait for their turn.
        held: requests of a model that wait for it to wake.
        complete: adds what others know to a report, by model.
    """

    def __init__(self) -> None:
        self.known: Container[str] = ()
        self.waiting: Callable[[str], int] = _none
        self.held: Callable[[str], int] = _none
        self.complete: Callable[[dict[str, ModelReport]], None] = lambda reports: None
        self._asked: dict[str, _Asked] = {}

    def __repr__(self) -> str:
        return f"Demand({ {name: asked.open for name, asked in self._asked.items()} })"

    def began(self, model: str) -> None:
        """A request came."""
        if model in self.known:
            asked = self._asked.get(model) or self._of(model)
            asked.arrivals += 1
            asked.open += 1

    def over(self, model: str) -> None:
        """It is answered, or not to be."""
        asked = self._asked.get(model)
        if asked is not None and asked.open:
            asked.open -= 1

    def ended(self, model: str, revision: str, *, latency_ms: float | None) -> None:
        """How a request to one revision went: milliseconds to its first token or answer, None when the mesh failed it."""
        if model not in self.known:
            return
        ended = self._of(model).revisions.setdefault(revision, _Ended())
        ended.requests += 1
        if latency_ms is None:
            ended.errors += 1
        else:
            ended.latency_ms_sum += latency_ms
            ended.latency_ms_squares += latency_ms * latency_ms

    def report(self, router: str, covers_s: float) -> LoadReport:
        """What came and ended since the last report, and what is under way now."""
        models: dict[str, ModelReport] = {}
        for model, asked in list(self._asked.items()):
            waiting, held = self.waiting(model), self.held(model)
            models[model] = ModelReport(
                model=model,
                arrivals=asked.arrivals,
                active=max(asked.open - waiting - held, 0),
                waiting=waiting,
                held=held,
                revisions=[
                    RevisionReport(
                        revision=revision,
                        requests=ended.requests,
                        errors=ended.errors,
                        latency_ms_sum=ended.latency_ms_sum,
                        latency_ms_squares=ended.latency_ms_squares,
                    )
                    for revision, ended in asked.revisions.items()
                ],
            )
            asked.arrivals = 0
            asked.revisions = {}
            if not asked.open and model not in self.known:
                del self._asked[model]
        self.complete(models)
        covers_ms = max(1, round(covers_s * 1000))
        return LoadReport(reporter=router, covers_ms=covers_ms, models=models.values())

    def _of(self, model: str) -> _Asked:
        asked = self._asked.get(model)
        if asked is None:
            asked = self._asked[model] = _Asked()
        return asked


def _none(model: str) -> int:
    return 0
