"""What the suite writes: a transcript for each run, chaos.json, and of a whole run docs/chaos.md and docs/chaos.svg."""

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from stagemesh import __version__

from .picture import svg
from .scenario import Outcome, Promise, quantile


def write(outcomes: Sequence[Outcome], folder: Path, docs: Path | None, first_seed: int, seeds: int) -> None:
    """Write everything; `docs` is the folder of the two documents, None leaves them as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, outcome in enumerate(outcomes):
        name = f"{number:03}-{outcome.fault}-{outcome.name}-seed{outcome.seed}.txt"
        (folder / name).write_text(transcript(outcome))
    whole = {
        "first_seed": first_seed,
        "seeds": seeds,
        **machine(),
        "outcomes": [as_json(o) for o in outcomes],
    }
    (folder / "chaos.json").write_text(json.dumps(whole, indent=1))
    (folder / "chaos.md").write_text(markdown(outcomes, first_seed, seeds))
    (folder / "chaos.svg").write_text(svg(stalls(outcomes)))
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        for name in ("chaos.md", "chaos.svg"):
            (docs / name).write_text((folder / name).read_text())


def transcript(outcome: Outcome) -> str:
    """A run as it happened, a line for each event."""
    lines = [f"{outcome.fault} {outcome.title} (seed {outcome.seed})", *outcome.transcript]
    return "\n".join([*lines, *(f"          {line}" for line in outcome.evidence), ""])


def as_json(outcome: Outcome) -> dict[str, object]:
    """Everything about a run; times that never came are null."""
    fields = dataclasses.asdict(outcome) | {"kept": outcome.kept}
    for promise in fields["promises"]:
        if not math.isfinite(promise["measured"]):
            promise["measured"] = None
    return fields


def machine() -> dict[str, object]:
    """Where it ran."""
    return {"version": __version__, "cores": os.cpu_count(), "python": platform.python_version()}


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """F1, F2, ... in their order."""
    return sorted({outcome.fault for outcome in outcomes}, key=lambda fault: (fault[0], int(fault[1:])))


def stalls(outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """Longest pauses of all streams by fault, in seconds."""
    return {
        fault: found
        for fault in faults(outcomes)
        if (found := [s for outcome in outcomes if outcome.fault == fault for s in outcome.stalls_s])
    }


def markdown(outcomes: Sequence[Outcome], first_seed: int, seeds: int) -> str:
    """The document: a table of faults, then the promises of each with the worst that was measured."""
    where = machine()
    lines = [
        "# Chaos",
        "",
        "Written by `make chaos`; not by hand. Meshes of real processes on one machine: 3 stages x 3 replicas, two",
        "routers, cache, registry and etcd, 64 concurrent streams (greedy and sampled). Every token is compared with",
        f"what the same mesh gave before the fault. {where['cores']} cores, Python {where['python']}, stagemesh "
        f"{where['version']};",
        f"{f'seeds {first_seed} to {first_seed + seeds - 1}' if seeds > 1 else f'seed {first_seed}'}. Run one again: `python -m tests.chaos --only F1 --first-seed "
        f"{first_seed}`.",
        "",
        "| fault | runs | streams and requests | failed | wrong tokens | p50 stall | p99 stall | promises |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in faults(outcomes):
        of = [outcome for outcome in outcomes if outcome.fault == fault]
        pauses = [stall for outcome in of for stall in outcome.stalls_s]
        broken = sum(not outcome.kept for outcome in of)
        verdict = "kept" if not broken else f"**broken in {broken} of {len(of)} runs**"
        lines.append(
            f"| {fault} {' / '.join(dict.fromkeys(outcome.title for outcome in of))} | {len(of)} "
            f"| {sum(o.attempted for o in of)} | {sum(o.failed for o in of)} | {sum(o.wrong for o in of)} "
            f"| {quantile(pauses, 0.5):.2f} s | {quantile(pauses, 0.99):.2f} s | {verdict} |"
        )
    lines += [
        "",
        "A stall is the longest time that a stream waited for a token, its first one included, without waits that were over when the fault came.",
        "",
    ]
    lines += ["![Stall times](chaos.svg)", "", "## Promises", ""]
    lines += ["| fault | promise | bound | worst measured | kept |", "|---|---|---|---|---|"]
    for fault in faults(outcomes):
        for text, promises in _by_text(outcomes, fault).items():
            worst = max(
                promises, key=lambda one: (not one.kept, -one.measured if one.least else one.measured)
            )
            kept = sum(promise.kept for promise in promises)
            lines.append(
                f"| {fault} | {text} | {_number(worst.bound, worst)} | {_number(worst.measured, worst)} "
                f"| {kept} of {len(promises)} |"
            )
    early = [outcome for outcome in outcomes if outcome.error]
    if early:
        lines += ["", "## Runs that ended early", ""]
        lines += [f"- {o.fault} {o.title}, seed {o.seed}: {o.error.splitlines()[0]}" for o in early]
    untested = list(dict.fromkeys(what for outcome in outcomes for what in outcome.untested))
    if untested:
        lines += ["", "## Not tested on this machine", "", *(f"- {what}" for what in untested)]
    return "\n".join([*lines, ""])


def _by_text(outcomes: Sequence[Outcome], fault: str) -> dict[str, list[Promise]]:
    found: dict[str, list[Promise]] = {}
    for outcome in outcomes:
        for promise in outcome.promises if outcome.fault == fault else ():
            found.setdefault(promise.text, []).append(promise)
    return found


def _number(value: float, promise: Promise) -> str:
    if not promise.unit and promise.fact:
        return "no" if value else "yes"
    return f"{value:.3g} {promise.unit}".strip() if math.isfinite(value) else "never"
