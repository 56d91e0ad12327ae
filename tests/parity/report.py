"""The parity matrix as a page: docs/parity.md, made from stagemesh/parity.json."""

import json
from collections.abc import Iterable
from pathlib import Path

from stagemesh.parity import Certificate, from_json

ROOT = Path(__file__).parents[2]
CERTIFICATES = ROOT / "stagemesh" / "parity.json"
PAGE = ROOT / "docs" / "parity.md"

_HEAD = """# Parity: split against whole

Made by `make parity`; do not edit. Each row is a small random checkpoint of one architecture, cut into 2 and into 3
stages and compared with transformers' own whole model in float32: for language models 16 greedy tokens of 4 prompts of
5, 1, 23 and 12 tokens served together (and once more with prompts in chunks of 5), for others every output of samples
of different lengths. One row again: `python -m tests.parity FAMILY --stages 3`. A split that is not listed here is
refused unless `stagemesh verify` certifies the checkpoint itself, or `--force` is given.

`path`: *fused* and *ragged* compute rows of many sessions together (fused: with compiled kernels where they pay);
*own-cache* goes session by session through the model library's own cache; *stateless* keeps nothing.
"""


def load() -> list[Certificate]:
    """The certificates that are kept."""
    return [from_json(one) for one in json.loads(CERTIFICATES.read_text())] if CERTIFICATES.exists() else []


def save(certificates: Iterable[Certificate]) -> None:
    """Write certificates and page."""
    ordered = sorted(certificates, key=lambda one: (one.task, one.model_type, one.architecture, one.stages))
    lines = ",\n".join(json.dumps(one.to_json()) for one in ordered)
    CERTIFICATES.write_text(f"[\n{lines}\n]\n")
    PAGE.write_text(page(ordered))


def page(certificates: Iterable[Certificate]) -> str:
    """The text of docs/parity.md."""
    rows: dict[tuple[str, str, str], list[Certificate]] = {}
    for one in certificates:
        rows.setdefault((one.task, one.model_type, one.architecture), []).append(one)
    good = {key: found for key, found in rows.items() if all(one.passed for one in found)}
    bad = {key: found for key, found in rows.items() if key not in good}
    language = sum(task == "generate" for task, _, _ in good)
    some = next(iter(rows.values()))[0] if rows else None
    versions = f" (torch {some.torch}, transformers {some.transformers})" if some else ""
    out = [_HEAD, f"**{len(good)} certified, {language} of them causal language models**{versions}.\n"]
    out.append(
        "| family | architecture | task | stages | path | max abs error | largest output | tokens equal |"
    )
    out.append("|---|---|---|---|---|---|---|---|")
    for (task, family, architecture), found in good.items():
        stages = ", ".join(str(one.stages) for one in found)
        error, scale = max(one.max_abs_error for one in found), max(one.scale for one in found)
        tokens = "/".join(
            str(sum(getattr(one, name) for one in found)) for name in ("tokens_equal", "tokens_compared")
        )
        tokens = "" if tokens == "0/0" else tokens
        out.append(
            f"| {family} | {architecture} | {task} | {stages} | {found[0].path} | {error:.1e} | {scale:.1e} | {tokens} |"
        )
    out.append("\n## Not certified\n")
    out.append("| family | stages | why |")
    out.append("|---|---|---|")
    for (_, family, _), found in bad.items():
        for one in found:
            why = one.reason.replace("|", "\\|") if not one.passed else "passed"
            out.append(f"| {family} | {one.stages} | {why} |")
    return "\n".join(out) + "\n"
