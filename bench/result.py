"""What a benchmark found: ratios under their agreed names, the numbers behind them, and what it could not measure."""

import platform
from dataclasses import dataclass, field
from typing import Any

import psutil

from bench.paired import Ratio, quartiles


@dataclass(frozen=True, slots=True)
class Bound:
    """What a ratio must reach: at least `value`, or at most when `at_most`."""

    value: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Series:
    """Measurements of one contender, one per round, in `unit`; drawn as a bar of the picture's `group`."""

    group: str
    name: str
    unit: str
    values: list[float]


@dataclass
class Result:
    """Everything one benchmark reports."""

    name: str
    title: str
    ratios: dict[str, Ratio] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_measured: dict[str, str] = field(default_factory=dict)
    quick: bool = False
    # A picture of its own, as SVG, in the place of bars.
    drawing: str = ""

    def ratio(self, key: str, value: Ratio, bound: Bound | None = None) -> None:
        """Record a ratio under its name, with what it must reach."""
        self.ratios[key] = value
        if bound is not None:
            self.bounds[key] = bound

    def as_json(self) -> dict[str, Any]:
        """Every ratio under its own key, then how sure it is and what it was made of."""
        out: dict[str, Any] = {"benchmark": self.name, "quick": self.quick}
        out.update({key: round(ratio.value, 4) for key, ratio in self.ratios.items()})
        out["spread"] = {key: [round(r.low, 4), round(r.high, 4)] for key, r in self.ratios.items()}
        out["pairs"] = {key: ratio.pairs for key, ratio in self.ratios.items()}
        out["meaningless"] = {key: r.meaningless for key, r in self.ratios.items() if r.meaningless}
        out["must_reach"] = {key: str(bound) for key, bound in self.bounds.items()}
        out["verdict"] = {
            key: str(self.ratios[key].verdict(bound.value, at_most=bound.at_most))
            for key, bound in self.bounds.items()
        }
        out["not_measured"] = self.not_measured
        out["series"] = [
            {"group": s.group, "name": s.name, "unit": s.unit, "values": [round(v, 5) for v in s.values]}
            for s in self.series
        ]
        out["notes"] = self.notes
        out["machine"] = machine()
        return out

    def as_text(self) -> str:
        """The same for a person."""
        lines = [f"{self.name}: {self.title}", ""]
        group = None
        for series in self.series:
            if series.group != group:
                group = series.group
                lines.append(f"  {group}")
            low, middle, high = quartiles(series.values)
            lines.append(f"    {series.name:<28} {middle:>10.4g} {series.unit}  ({low:.4g} .. {high:.4g})")
        lines.append("")
        for key, ratio in self.ratios.items():
            bound = self.bounds.get(key)
            lines.append(
                f"  {key:<32} {ratio.value:6.2f}  ({ratio.low:.2f} .. {ratio.high:.2f}){_says(ratio, bound)}"
            )
        lines += [f"  {key:<32} not measured: {why}" for key, why in self.not_measured.items()]
        lines += [f"  {note}" for note in self.notes]
        if self.quick:
            lines.append("  --quick: sizes too small to conclude anything from")
        return "\n".join(lines)


def _says(ratio: Ratio, bound: Bound | None) -> str:
    said = "" if bound is None else f"  {bound}: {ratio.verdict(bound.value, at_most=bound.at_most)}"
    return said + (f"  [{ratio.meaningless}]" if ratio.meaningless else "")


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that was when the benchmark ended."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_1_5_15_min": [round(load, 1) for load in psutil.getloadavg()],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
            )
    except OSError:
        return platform.processor()
