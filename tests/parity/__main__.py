"""`python -m tests.parity FAMILY --stages 3`: one row of the parity matrix; `--all`: all of it, written down."""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from stagemesh.parity import Certificate

from . import report
from .matrix import STAGES, failed, families, run


def main() -> int:
    """0 when every row that ran agrees."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("family", nargs="*", help="rows by name, see --list")
    parser.add_argument("--stages", type=int, help="only this number of stages (default: 2 and 3)")
    parser.add_argument(
        "--all", action="store_true", help="every row; writes stagemesh/parity.json and docs/parity.md"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help="put the rows that ran into the kept ones")
    parser.add_argument("--json", action="store_true", help="print the certificates as JSON")
    options = parser.parse_args()
    known = families()
    if options.list:
        print("\n".join(known))
        return 0
    names = list(known) if options.all else options.family
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        parser.error(f"no family {', '.join(unknown)}; see --list" if unknown else "name a family, or --all")
    stages = (options.stages,) if options.stages else STAGES
    found = _run([(name, count) for name in names for count in stages], options.jobs)
    if options.all or options.write:
        kept = [] if options.all else [one for one in report.load() if not _replaced(one, found)]
        report.save([*kept, *found])
    if options.json:
        print(json.dumps([one.to_json() for one in found], indent=2))
    agree = sum(one.passed for one in found)
    print(f"{agree} of {len(found)} agree", file=sys.stderr)
    return 0 if agree == len(found) else 1


def _replaced(one: Certificate, found: list[Certificate]) -> bool:
    rows = {(other.model_type, other.task, other.stages) for other in found}
    failed = (one.model_type, "", one.stages)
    return (
        (one.model_type, one.task, one.stages) in rows
        or failed in rows
        or (
            one.task == ""
            and any((one.model_type, one.stages) == (family, stages) for family, _, stages in rows)
        )
    )


def _run(rows: list[tuple[str, int]], jobs: int) -> list[Certificate]:
    """Every row, with a line for each as it ends. One that kills its process (memory) takes no other with it."""
    found: list[Certificate] = []
    started = time.monotonic()

    def ended(one: Certificate, name: str, stages: int) -> None:
        found.append(one)
        agrees = f"agrees, {one.path}, max abs error {one.max_abs_error:.1e}"
        verdict = agrees if one.passed else f"FAILS: {one.reason}"
        passed = f"{time.monotonic() - started:4.0f} s, {len(rows) - len(found)} left"
        print(f"[{passed}] {name} in {stages}: {verdict}", file=sys.stderr, flush=True)

    for name, stages in _together(rows, jobs, ended):
        if list(_together([(name, stages)], 1, ended)):
            ended(failed(name, stages, "its process died, probably for want of memory"), name, stages)
    return found


def _together(
    rows: list[tuple[str, int]], jobs: int, ended: Callable[[Certificate, str, int], None]
) -> list[tuple[str, int]]:
    """Run rows in processes; those that were not run because a process died."""
    left = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, min(jobs, len(rows))), mp_context=spawn) as pool:
        waiting = {pool.submit(run, name, stages): (name, stages) for name, stages in rows}
        for done in as_completed(waiting):
            try:
                ended(done.result(), *waiting[done])
            except BrokenProcessPool:
                left.append(waiting[done])
    return left


if __name__ == "__main__":
    sys.exit(main())
