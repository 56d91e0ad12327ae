"""Stall times as a picture: a row for each fault, a dot for each stream, written as SVG by hand."""

import math
import random
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, TOP = 760, 60, 30, 40, 60
LEAST_S, MOST_S = 0.01, 100.0
MOST_DOTS = 300


def svg(stalls: Mapping[str, Sequence[float]]) -> str:
    """The picture as SVG text; seconds on a logarithmic axis."""
    bottom = TOP + ROW * len(stalls)
    body = [_text(16, 26, "Longest pause of each stream, in seconds, by fault", 15, "600")]
    for power in range(round(math.log10(LEAST_S)), round(math.log10(MOST_S)) + 1):
        x = _x(10.0**power)
        body.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>')
        body.append(_text(x, TOP - 14, f"{10.0**power:g}", 11, anchor="middle"))
    rng = random.Random(0)
    for row, (fault, values) in enumerate(stalls.items()):
        y = TOP + ROW * row + ROW / 2
        body.append(_text(16, y + 4, fault, 13, "600"))
        shown = values if len(values) <= MOST_DOTS else rng.sample(list(values), MOST_DOTS)
        for value in shown:
            jitter = y + rng.uniform(-ROW / 4, ROW / 4)
            body.append(
                f'<circle cx="{_x(value):.1f}" cy="{jitter:.1f}" r="2" fill="#2f6f9f" fill-opacity="0.35"/>'
            )
        ordered = sorted(values)
        for part, colour in ((0.5, "#222"), (0.99, "#c0392b")):
            x = _x(ordered[max(0, math.ceil(part * len(ordered)) - 1)])
            body.append(
                f'<line x1="{x:.1f}" y1="{y - ROW / 3:.1f}" x2="{x:.1f}" y2="{y + ROW / 3:.1f}" '
                f'stroke="{colour}" stroke-width="2"/>'
            )
    body.append(_text(16, bottom + 22, "black: median; red: 99th percentile; a dot: a stream", 11))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 36}" '
            f'viewBox="0 0 {WIDTH} {bottom + 36}" font-family="system-ui, sans-serif">',
            f'<rect width="{WIDTH}" height="{bottom + 36}" fill="#ffffff"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _x(seconds: float) -> float:
    seconds = min(max(seconds, LEAST_S), MOST_S)
    part = math.log10(seconds / LEAST_S) / math.log10(MOST_S / LEAST_S)
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, size: int, weight: str = "400", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" fill="#222" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
