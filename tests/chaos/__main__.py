"""`python -m tests.chaos [--seeds N] [--only F1,F3] [--report DIR]`: the whole suite, with its bounds as they are.

Writes transcripts and chaos.json into the report folder; a run of everything also docs/chaos.md and docs/chaos.svg.
"""

import argparse
import asyncio
import gc
import random
import sys
from pathlib import Path

from .report import write
from .runner import Suite
from .scenario import Outcome, Scenario
from .suite import ALL


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs of each fault with a random moment or target"
    )
    parser.add_argument(
        "--first-seed", type=int, default=0, help="seed of the first run (default: a random one)"
    )
    parser.add_argument("--only", default="", help="faults, F1,F3, or names of scenarios")
    parser.add_argument(
        "--report", type=Path, default=Path("build/chaos"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--docs", type=Path, help="folder for chaos.md and chaos.svg (default: docs, of a whole run)"
    )
    parser.add_argument(
        "--ci", action="store_true", help="as in CI: short, and with patience for a loaded machine"
    )
    parser.add_argument("--list", action="store_true", help="print the scenarios and end")
    options = parser.parse_args()
    chosen = [one for one in ALL if not options.only or _named(one, options.only)]
    if options.list or not chosen:
        print("\n".join(f"{one.name:<32} {one.title}" for one in ALL))
        return 0 if options.list else 2
    first = options.first_seed or random.SystemRandom().randrange(1, 10**6)
    outcomes = asyncio.run(_run(chosen, range(first, first + options.seeds), full=not options.ci))
    docs = options.docs or (Path("docs") if not options.only and not options.ci else None)
    write(outcomes, options.report, docs, first, options.seeds)
    broken = [outcome for outcome in outcomes if not outcome.kept]
    print(f"{len(outcomes)} runs, {len(broken)} with a broken promise; report in {options.report}")
    return 1 if broken else 0


def _named(one: Scenario, only: str) -> bool:
    return any(word in (one.fault, one.name, one.body.__name__) for word in only.split(","))


async def _run(chosen: list[Scenario], seeds: range, *, full: bool) -> list[Outcome]:
    outcomes: list[Outcome] = []
    gc.collect()
    gc.freeze()  # the clients' own pauses are nobody's lateness
    async with Suite(full=full) as suite:
        for seed in seeds:
            for one in chosen:
                if one.each_seed or seed == seeds[0]:
                    outcomes.append(await suite.perform(one, seed))
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
