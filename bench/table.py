"""README's table of results, made from `results/*.json`, so that it cannot say anything else. Pure but for `rewrite`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- results: made by `python -m bench table` from bench/results/, not by hand -->"
END = "<!-- end of results -->"
README = Path(__file__).parents[1] / "README.md"


def load(folder: Path, order: Sequence[str]) -> list[dict[str, Any]]:
    """The results of a folder: those named in `order` first and in that order, then the others by name."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return [found[name] for name in sorted(found, key=lambda name: _place(name, order))]


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each ratio that must reach something, and for each that could not be measured.

    "middle half" is where half of the paired ratios lie; a ratio that its spread makes meaningless says so.
    """
    lines = [
        "| benchmark | ratio | must reach | measured | middle half | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        name = result["benchmark"]
        benchmark = f"[`{name}`](bench/results/{name}.svg)"
        for key, bound in result["must_reach"].items():
            low, high = result["spread"][key]
            lines.append(
                f"| {benchmark} | `{key}` | {bound} | {result[key]:.2f} | {low:.2f} .. {high:.2f} | {_says(result, key)} |"
            )
        lines += [
            f"| {benchmark} | `{key}` | | | | not measured: {why} |"
            for key, why in result["not_measured"].items()
        ]
    return "\n".join(lines)


def rewritten(text: str, results: Sequence[dict[str, Any]]) -> str:
    """The document with its table made anew.

    Raises:
        ValueError: it does not have the two markers, once each and in order.
    """
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not text.count(BEGIN) == text.count(END) == rest.count(END) == 1:
        raise ValueError(f"README needs one {BEGIN!r} and one {END!r} after it")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def rewrite(folder: Path, order: Sequence[str]) -> bool:
    """Write the table of `folder` into README; whether that changed it."""
    old = README.read_text()
    new = rewritten(old, load(folder, order))
    if new != old:
        README.write_text(new)
    return new != old


def _says(result: dict[str, Any], key: str) -> str:
    noise = " (noise)" if key in result["meaningless"] else ""
    return f"{result['verdict'][key]}{noise}" if not result["quick"] else "a quick run: says nothing"


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)
