"""Curves as an SVG written by hand: a panel for each group, both axes logarithmic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _PANEL, _GAP, _LEFT, _TOP = 300, 210, 30, 60, 70
_COLUMNS = 3
_COLOURS = ("#9a9a9a", "#d98032", "#2f6f9f", "#5b9a57")


@dataclass(frozen=True)
class Line:
    """One curve; only points with both numbers above 0 are drawn."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One group of curves."""

    title: str
    lines: Sequence[Line]


def svg(title: str, x: str, y: str, panels: Sequence[Panel]) -> str:
    """The picture as SVG text."""
    rows = math.ceil(len(panels) / _COLUMNS)
    width = _COLUMNS * (_WIDTH + _GAP) + _LEFT
    height = _TOP + rows * (_PANEL + 2 * _GAP) + 20
    body = [_text(16, 26, title, 16), _text(16, 46, f"{y} against {x}; both axes logarithmic", 12)]
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    for nth, name in enumerate(names):
        body.append(
            _text(_LEFT + 190 * nth, height - 10, f"\u25a0 {name}", 12, _COLOURS[nth % len(_COLOURS)])
        )
    for nth, panel in enumerate(panels):
        left = _LEFT + nth % _COLUMNS * (_WIDTH + _GAP)
        body += _panel(panel, names, left, _TOP + nth // _COLUMNS * (_PANEL + 2 * _GAP))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _panel(panel: Panel, names: list[str], left: int, top: int) -> list[str]:
    points = [point for line in panel.lines for point in line.points if min(point) > 0]
    if not points:
        return [_text(left, top + 12, f"{panel.title}: nothing to draw", 12)]
    xs, ys = ([math.log10(point[axis]) for point in points] for axis in (0, 1))

    def place(point: tuple[float, float]) -> str:
        across = (math.log10(point[0]) - min(xs)) / (max(xs) - min(xs) or 1)
        up = (math.log10(point[1]) - min(ys)) / (max(ys) - min(ys) or 1)
        return f"{left + across * (_WIDTH - 20):.1f},{top + _PANEL - up * (_PANEL - 20):.1f}"

    out = [
        _text(left, top + 8, panel.title, 12),
        f'<path d="M{left},{top + 16} V{top + _PANEL} H{left + _WIDTH - 20}" fill="none" stroke="#888"/>',
    ]
    for axis, values in ((0, xs), (1, ys)):
        for power in range(math.ceil(min(values)), math.floor(max(values)) + 1):
            at = (10.0**power, 10.0 ** min(ys)) if axis == 0 else (10.0 ** min(xs), 10.0**power)
            where_x, where_y = map(float, place(at).split(","))
            out.append(
                _text(where_x - 8, where_y + 14, f"{10.0**power:g}", 10)
                if axis == 0
                else _text(where_x - 40, where_y + 4, f"{10.0**power:g}", 10)
            )
    for line in panel.lines:
        drawn = " ".join(place(point) for point in sorted(line.points) if min(point) > 0)
        colour = _COLOURS[names.index(line.name) % len(_COLOURS)]
        out.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    return out


def _text(x: float, y: float, text: str, size: int, colour: str = "#222") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
