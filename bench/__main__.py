"""`python -m bench NAME [--json] [--quick] [--rounds N]`; `python -m bench --help` says what each NAME asks."""

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path

from bench import table
from bench.options import Options
from bench.picture import svg
from bench.result import Result

_LIMIT_S = 1800.0
RESULTS = Path(__file__).with_name("results")

QUESTIONS = {
    "transport": "How fast do tensor frames cross between two processes, beside plain bytes and plain protobuf?",
    "hop": "What does each added stage cost a decode step, beside a bare gRPC ping-pong?",
    "pipeline": "Do two one-thread stages keep up with one process of two threads on stateless batches?",
    "generate": "Tokens per second at 1, 8 and 16 streams, beside transformers' generate with two threads.",
    "router": "What does the router add to a request, and how many does it carry per second?",
    "prefill": "How long do running streams stall while a 2,000-token prompt arrives?",
    "telemetry": "What do metrics and spans cost, in tokens per second of 8 streams?",
    "threads": "One process with a compute thread, or a compute process beside a gRPC process?",
    "plan": "What does planning for unequal nodes bring beside simpler splits, and how long does it take?",
    "compiled": "Is torch.compile worth its compile time, beside packed weights and the stage's own fast path?",
    "cache": "How fast is a kept answer, beside a bare call and a service in front of Redis, and how many are kept a second?",
    "prefix": "What does it save to send prompts where their beginnings are held, and what does it cost in queues?",
    "coldstart": "How soon does a model without replicas answer, beside a new process that loads a partition of it?",
    "preload": "How many requests find their model asleep, beside the memory that idle models take?",
    "simulate": "What do 10,000 nodes and 100 models do in a day, and what does that cost etcd and the routers?",
    "balance": "How near does the balance of 1,000 unequal replicas come to a policy that knows everything?",
}

EPILOG = """
Every benchmark runs its contenders interleaved (A B, B A, ...) and prints the median of the paired ratios with the
middle half of them. A ratio marked [noise] must not be quoted; run it again on a quieter machine or with more
--rounds. Keys that cannot be measured yet are listed with the reason, never made up.

  python -m bench transport            a table on standard output, a picture in bench/results/
  python -m bench generate --json      the same as JSON; progress goes to standard error
  python -m bench all --quick          does every benchmark still run? (its numbers mean nothing)
  python -m bench table                makes README's table anew from bench/results/ (`all` ends with it)
"""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = "\n".join(f"  {name:<10} {question}" for name, question in QUESTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Benchmarks, one question each:\n\n{names}\n  all        every one of them, in this order\n"
        "  table      none: README's table from the results that there are",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="NAME", choices=[*QUESTIONS, "all", "table"], help="which one, see above"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, in seconds")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="rounds instead of its own number")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="PATH",
        help="recorded requests to replay; shared/data beside the checkout",
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="where the picture goes")
    parsed = parser.parse_args(argv)
    if not 0 <= parsed.rounds <= 100:
        parser.error("--rounds: between 1 and 100")
    return parsed


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 0 unless something failed to run (falling short of a floor is a finding)."""
    args = parse(argv)
    if args.name == "table":
        _make_table(args.results or RESULTS)
        return 0
    options = Options(quick=args.quick, rounds=args.rounds, trace=args.trace)
    names = list(QUESTIONS) if args.name == "all" else [args.name]
    results: list[Result] = []
    for name in names:
        print(f"bench {name}: {QUESTIONS[name]}", file=sys.stderr, flush=True)
        result = asyncio.run(_bounded(name, options))
        result.quick = args.quick
        results.append(result)
        if not args.json:
            print(result.as_text(), flush=True)
        _draw(result, args.results, args.quick)
    if args.json:
        found = [result.as_json() for result in results]
        print(json.dumps(found if args.name == "all" else found[0], indent=1))
    if args.name == "all" and not args.quick and args.results is None:
        _make_table(RESULTS)
    return 0


async def _bounded(name: str, options: Options) -> Result:
    """Run one benchmark; `TimeoutError` when it takes far longer than any should."""
    async with asyncio.timeout(_LIMIT_S):
        result: Result = await importlib.import_module(f"bench.{name}").run(options)
        return result


def _make_table(folder: Path) -> None:
    """README's table of what lies in `folder`."""
    changed = table.rewrite(folder, list(QUESTIONS))
    print(f"README.md: {'rewritten' if changed else 'as it should be'}", file=sys.stderr)


def _draw(result: Result, folder: Path | None, quick: bool) -> None:
    """The picture and the JSON behind it; a quick run does not replace a real one."""
    if folder is None and quick:
        return
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result.name}.svg").write_text(result.drawing or svg(result))
    (folder / f"{result.name}.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
