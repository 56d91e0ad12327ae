"""What the autoscaler asks: how long to keep a model that nobody asks for, and which ones to wake before somebody does. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from .grid import bin_of
from .policy import Policy
from .state import common_from, dump_common, dump_model, model_from
from .windows import windows

COMMON = ".common"
"""Under which name `dump` gives what was learned from all models; no model may be called so."""
_ACCOUNT_S = 60.0
_SAME = 1.0
_AGAIN_S = 60.0
_AT_ONCE = 256


@dataclass(slots=True)
class _Plan:
    since_s: float
    windows: list[tuple[float, float]]
    # The bin of the idle time at which the windows were last made, and when.
    place: int = 0
    made_s: float = float("-inf")
    changed: bool = True


class Preloader:
    """Learns from requests as they come; at most `models` models are remembered, about 6 kB each.

    Args:
        keep_s: seconds that a fixed keep-alive would keep a model: the memory that this may take.
        load_s: seconds that a load takes, for all models.
        epoch_s: what to add to the caller's clock for Unix time: hours of the day, and a state that others can load.
        models: how many; the one that was asked for least recently goes first.
    """

    def __init__(
        self, keep_s: float = 300.0, load_s: float = 10.0, epoch_s: float = 0.0, models: int = 10_000
    ) -> None:
        self.keep_s = keep_s
        self._epoch_s = epoch_s
        self._most = models
        self._policy = Policy([keep_s], load_s, epoch_s)
        # Whose windows are to be made when they are asked for: many at once take hardly longer than one.
        self._asked: set[str] = set()
        self._plans: dict[str, _Plan] = {}
        self._accounted_s = float("-inf")

    def __repr__(self) -> str:
        return f"Preloader(keep_s={self.keep_s:g}, models={len(self._plans)}, {self._policy.proof!r})"

    def observe(self, model: str, now_s: float) -> None:
        """A request came. More within the time that a load takes are one: they say nothing about when to load."""
        plan = self._plans.get(model)
        if plan is not None and now_s - plan.since_s < _SAME * self._policy.load_s:
            return
        if plan is None and len(self._plans) >= self._most:
            oldest = min(self._plans, key=lambda name: self._plans[name].since_s)
            self.forget(set(self._plans) - {oldest})
        if model in self._asked:
            self._make(now_s)
        self._policy.learn(model, now_s)
        if plan is None:
            plan = self._plans[model] = _Plan(now_s, [])
        plan.since_s, plan.place, plan.changed = now_s, 0, True
        if now_s - plan.made_s >= _AGAIN_S:
            self._asked.add(model)

    def wanted(self, now_s: float) -> dict[str, str]:
        """Models to have awake although nobody asks, with the reason: those whose next request is expected in a while from now."""
        if now_s - self._accounted_s >= _ACCOUNT_S:
            self._accounted_s = now_s
            self._look_again(now_s)
        self._make(now_s)
        found: dict[str, str] = {}
        for model, plan in self._plans.items():
            idle_s = now_s - plan.since_s
            for start, end in plan.windows:
                if start > 0 and start - self._policy.load_s <= idle_s < end:
                    found[model] = (
                        f"its requests tend to come {start:.0f} to {end:.0f} s after the last one, {idle_s:.0f} s ago"
                    )
        return found

    def _look_again(self, now_s: float) -> None:
        """Silence is news as well: plan anew for models that it has lasted markedly longer for."""
        self._policy.pass_time(now_s)
        for model, plan in self._plans.items():
            place = bin_of(max(0.0, now_s - plan.since_s))
            if place > plan.place:
                plan.place = place
                self._asked.add(model)

    def _make(self, now_s: float) -> None:
        """Make the windows of those that were asked for or have been silent for markedly longer."""
        models = sorted(self._asked)
        self._asked.clear()
        for first in range(0, len(models), _AT_ONCE):
            some = models[first : first + _AT_ONCE]
            for model, loaded in zip(some, self._policy.follow(some, now_s), strict=True):
                plan = self._plans[model]
                plan.windows, plan.made_s = windows(loaded[0]), now_s

    def keep_alive_s(self, model: str, now_s: float) -> float:
        """Seconds after its last request for which the model is worth its memory; the fixed keep-alive for one never seen.

        0 means that it can go at once. Later windows are in `wanted`.
        """
        plan = self._plans.get(model)
        if plan is None:
            return self.keep_s
        if model in self._asked:
            self._make(now_s)
        return plan.windows[0][1] if plan.windows and plan.windows[0][0] == 0 else 0.0

    def forget(self, keep: set[str]) -> None:
        """Drop models outside `keep`; what they taught about all stays."""
        for model in self._plans.keys() - keep:
            del self._plans[model]
        self._asked &= self._plans.keys()
        self._policy.forget(keep)

    def dump(self, *, everything: bool = False) -> dict[str, bytes]:
        """What was learned, as JSON: of each model that was asked for since the last `dump` (or of all), and of all under `COMMON`."""
        out: dict[str, bytes] = {}
        for model, plan in self._plans.items():
            if plan.changed or everything:
                plan.changed = False
                out[model] = dump_model(self._policy.hazards.models[model], self._epoch_s)
        if out:
            out[COMMON] = dump_common(self._policy)
        return out

    def load(self, items: Mapping[str, bytes], now_s: float) -> int:
        """Take over what another one dumped; models seen here are left as they are. How many could not be read."""
        unreadable = 0
        if not self._policy.hazards.gaps and COMMON in items:
            unreadable += not common_from(self._policy, items[COMMON])
        for model, value in items.items():
            if model == COMMON or model in self._plans or len(self._plans) >= self._most:
                continue
            known = model_from(value, self._epoch_s, now_s)
            if known is None:
                unreadable += 1
                continue
            self._policy.hazards.models[model] = known
            self._plans[model] = _Plan(known.last_s, [], changed=False)
            self._asked.add(model)
        return unreadable
