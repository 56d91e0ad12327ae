"""What `bench` found, for a person and for a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stagemesh.pipeline_model import Change, Prediction, StageCost, changes, predict
from stagemesh.token_time import Load, calibrate, waking

_PARTS = ("queue", "compute", "encode", "network")
# The same time as the pipeline model divides it.
_MODELLED = ("compute", "hops", "waiting")
# A change that is predicted to bring less is not worth a word.
_WORTH = 1.02
# Error of the prediction from which on it is said what the model leaves out.
_WRONG = 0.1
# Fewer batches in flight than this part of what there could be is worth a word.
_MERGED = 0.75

ASSUMES = (
    "stages compute at once on cores of their own, one pass at a time; a pass takes a + b x rows (fitted); "
    "hops take what they took at the fewest streams; batches are even and spread evenly over replicas"
)


@dataclass(frozen=True)
class Report:
    """A finished `bench`: its settings and its loads, fewest streams first."""

    model: str
    architecture: str
    prompt_tokens: int
    tokens: int
    rounds: int
    loads: tuple[Load, ...]

    @property
    def costs(self) -> list[StageCost]:
        """The model's parameters, fitted to the loads."""
        return calibrate(self.loads)

    def predicted(self, load: Load) -> Prediction:
        """The model's answer for that many streams."""
        return predict(self.costs, load.streams)

    def measured(self, load: Load) -> tuple[float, float, float]:
        """The time between tokens as the model divides it: computing, hops and waiting, in seconds."""
        compute = sum(part.compute_s for part in load.stages)
        waiting = sum(part.queue_s for part in load.stages) - waking(self.loads)
        return compute, load.step_s - compute - waiting, waiting

    def modelled(self, load: Load) -> tuple[float, float, float]:
        """The same three of the model."""
        predicted = self.predicted(load)
        compute = sum(cost.pass_s(predicted.rows) for cost in self.costs)
        hops = sum(cost.hop_s for cost in self.costs)
        return compute, hops, predicted.step_s - compute - hops

    def helpful(self) -> list[Change]:
        """Changes that are predicted to raise the rate of the last load, best first."""
        last = self.predicted(self.loads[-1])
        return [c for c in changes(self.costs, last.streams) if c.tokens_per_s > _WORTH * last.tokens_per_s]


# ---- for a program ----


def as_dict(report: Report) -> dict[str, Any]:
    """For --json: times in milliseconds, rates in tokens per second, parts of a whole between 0 and 1."""
    last = report.predicted(report.loads[-1])
    return {
        "model": report.model,
        "architecture": report.architecture,
        "stages": len(report.costs),
        "prompt_tokens": report.prompt_tokens,
        "tokens": report.tokens,
        "rounds": report.rounds,
        "loads": [_load(report, load) for load in report.loads],
        "pipeline_model": {
            "assumes": ASSUMES,
            "stages": [
                {
                    "stage": index,
                    "fixed_ms": _ms(cost.fixed_s),
                    "row_ms": _ms(cost.row_s),
                    "hop_ms": _ms(cost.hop_s),
                    "replicas": cost.replicas,
                }
                for index, cost in enumerate(report.costs)
            ],
        },
        "bottleneck": {"streams": last.streams, "stage": last.bottleneck, "bound": last.bound},
        "would_help": [
            {"what": change.what, "tokens_per_s": round(change.tokens_per_s, 2)}
            for change in report.helpful()
        ],
    }


def _load(report: Report, load: Load) -> dict[str, Any]:
    predicted = report.predicted(load)
    return {
        "streams": load.streams,
        "tokens_per_s": {
            "median": round(load.rate, 2),
            "per_stream": round(load.rate / load.streams, 2),
            "rounds": [round(rate, 2) for rate in load.rates],
        },
        "first_token_ms": _quantiles(load.first_token_s),
        "between_tokens_ms": {"mean": _ms(load.step_s), **_quantiles(load.gaps)},
        "stages": [
            {
                "stage": part.stage,
                "replicas": part.replicas,
                "rows": round(part.rows, 2),
                **{f"{name}_ms": _ms(getattr(part, f"{name}_s")) for name in _PARTS},
                "bubble_ms": _ms(part.idle_s),
                "bubble": round(part.idle_s / load.step_s, 4),
                "predicted_bubble": round(predicted.bubbles[index], 4),
            }
            for index, part in enumerate(load.stages)
        ],
        "rest_ms": _ms(load.rest_s),
        "predicted": {
            "tokens_per_s": round(predicted.tokens_per_s, 2),
            "between_tokens_ms": _ms(predicted.step_s),
            "batches": predicted.batches,
            "rows": round(predicted.rows, 2),
            "bound": predicted.bound,
            "error": round(_error(load, predicted), 4),
            **{f"{name}_ms": _ms(s) for name, s in zip(_MODELLED, report.modelled(load), strict=True)},
        },
        "measured": {
            **{f"{name}_ms": _ms(s) for name, s in zip(_MODELLED, report.measured(load), strict=True)},
        },
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": _ms(float(np.percentile(seconds, q))) for q in (50, 99)}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _error(load: Load, predicted: Prediction) -> float:
    """Predicted over measured tokens per second, less one."""
    return predicted.tokens_per_s * load.step_s / load.streams - 1


# ---- for a person ----


def show(report: Report, console: Console) -> None:
    """Print rates, where a token's time went at each load, and the model beside the measurement."""
    console.print(
        f"{report.model}: {report.architecture or 'a model'} in {len(report.costs)} stages; "
        f"{report.prompt_tokens} tokens in, {report.tokens} out, greedy, {report.rounds} rounds\n"
    )
    _show_rates(report, console)
    for load in report.loads:
        _show_parts(report, load, console)
    console.print(
        "the rest: the last stage's result on its way to the head, and waiting there for a pass. BUBBLE is how long "
        "a stage had nothing to compute between two tokens: it overlaps the others' parts and is not in the sum."
    )
    _show_model(report, console)
    _show_advice(report, console)


def _table(*columns: str, gap: int = 2) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _show_rates(report: Report, console: Console) -> None:
    table = _table("STREAMS", "TOKENS/S (LOW .. HIGH)", "EACH", "FIRST p50", "p99", "NEXT p50", "p99 ms")
    for load in report.loads:
        first, gaps = _quantiles(load.first_token_s), _quantiles(load.gaps)
        table.add_row(
            str(load.streams),
            f"{load.rate:.1f} ({min(load.rates):.1f} .. {max(load.rates):.1f})",
            f"{load.rate / load.streams:.1f}",
            f"{first['p50']:.1f}",
            f"{first['p99']:.1f}",
            f"{gaps['p50']:.2f}",
            f"{gaps['p99']:.2f}",
        )
    console.print(table)


def _show_parts(report: Report, load: Load, console: Console) -> None:
    predicted = report.predicted(load)
    console.print(
        f"\nWhere the {_words(load.step_s)} ms between two tokens went at {_streams(load.streams)}, ms:"
    )
    table = _table(
        "STAGE", *(part.upper() for part in _PARTS), "SUM", "SHARE", "ROWS", "BUBBLE", "SHARE", "MODEL", gap=1
    )
    for index, part in enumerate(load.stages):
        table.add_row(
            f"{part.stage}" + (f" x{part.replicas}" if part.replicas > 1 else ""),
            *(_words(getattr(part, f"{name}_s")) for name in _PARTS),
            _words(part.path_s),
            f"{part.path_s / load.step_s:.0%}",
            f"{part.rows:.1f}" if part.rows else "?",
            _words(part.idle_s) if part.rows else "?",
            f"{part.idle_s / load.step_s:.0%}" if part.rows else "?",
            f"{predicted.bubbles[index]:.0%}",
        )
    blank = [""] * len(_PARTS)
    table.add_row("the rest", *blank, _words(load.rest_s), f"{load.rest_s / load.step_s:.0%}")
    table.add_row("in all", *blank, _words(load.step_s), "100%")
    console.print(table)


def _show_model(report: Report, console: Console) -> None:
    console.print(
        "\nThe pipeline model beside the measurement, ms between two tokens (and as tokens/s of all streams):"
    )
    table = _table("STREAMS", "", "STEP", "COMPUTE", "HOPS", "WAITING", "TOKENS/S", "ERROR", "IN FLIGHT")
    for load in report.loads:
        predicted, measured = report.predicted(load), report.measured(load)
        model = report.modelled(load)
        table.add_row(
            str(load.streams),
            "measured",
            *(_words(seconds) for seconds in (load.step_s, *measured)),
            f"{load.streams / load.step_s:.1f}",
            "",
            f"{batches:.1f} x {load.streams / batches:.1f}" if (batches := _in_flight(load)) else "?",
        )
        table.add_row(
            "",
            "model",
            *(_words(seconds) for seconds in (predicted.step_s, *model)),
            f"{predicted.tokens_per_s:.1f}",
            f"{_error(load, predicted):+z.0%}",
            f"{predicted.batches} x {predicted.rows:.1f}",
        )
    console.print(table)
    fits = "; ".join(
        f"stage {index} {_words(cost.fixed_s)} + {_words(cost.row_s)} x rows, hop {_words(cost.hop_s)}"
        for index, cost in enumerate(report.costs)
    )
    console.print(f"It assumes: {ASSUMES}.\nFitted, ms: {fits}.")
    if len(report.loads) == 1:
        console.print("One number of streams says nothing of what a row costs: give --streams several.")
    if max(abs(_error(load, report.predicted(load))) for load in report.loads) > _WRONG:
        console.print(
            "Where it is off, see which column: it knows nothing of prompts that other streams are still working "
            "off, of batches that come unevenly, and of stages, router and clients that share cores."
        )


def _show_advice(report: Report, console: Console) -> None:
    last = report.predicted(report.loads[-1])
    slow = last.bottleneck
    if last.bound == "stage":
        said = f"Bottleneck at {_streams(last.streams)}: stage {slow}; in the model it is never idle."
    else:
        said = (
            f"Bottleneck at {_streams(last.streams)}: the way round, not a stage; stage {slow} has most to do, and in "
            f"the model it is idle {last.bubbles[slow]:.0%} of the time."
        )
    console.print(f"\n{said}")
    batches = _in_flight(report.loads[-1])
    if batches and batches < _MERGED * last.batches:
        console.print(
            f"But the streams travel in {batches:.1f} batches of {last.streams / batches:.1f}, not in {last.batches} of "
            f"{last.rows:.1f}: stages wait for one another more than they need."
        )
    console.print("What would help, in the model:")
    helpful = report.helpful()
    for change in helpful:
        gain = change.tokens_per_s / last.tokens_per_s - 1
        console.print(f"  {change.what}: {change.tokens_per_s:.0f} tokens/s ({gain:+.0%})")
    if not helpful:
        console.print("  nothing that it knows of")


def _in_flight(load: Load) -> float:
    """Batches that the streams travelled in, as stage 0 saw them; 0 when it did not say."""
    rows = load.stages[0].rows
    return load.streams / rows if rows else 0.0


def _streams(count: int) -> str:
    return f"{count} stream" + ("s" if count > 1 else "")


def _words(seconds: float) -> str:
    return f"{seconds * 1e3:z.2f}"
