"""A benchmark's picture: horizontal bars with their quartiles, a panel per group, as an SVG written by hand."""

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from bench.paired import quartiles
from bench.result import Result, Series

_WIDTH, _LABEL, _BAR, _GAP, _HEAD = 760, 250, 18, 6, 30
_ROOM = 400
_COLOURS = ("#2f6f9f", "#d98032", "#5b9a57", "#8a6bb1", "#9a9a9a")


def svg(result: Result) -> str:
    """The picture as SVG text."""
    body: list[str] = []
    y = 64
    colours = _colours(result.series)
    for group, members in groupby(result.series, key=lambda series: series.group):
        panel = list(members)
        body.append(_text(16, y + 14, group, weight="600"))
        y += _HEAD - 6
        longest = max(quartiles(series.values)[2] for series in panel)
        for series in panel:
            body += _bar(series, y, longest, colours[series.name])
            y += _BAR + _GAP
        y += 12
    footer = "quick run: too small to conclude from" if result.quick else "bar: median; line: middle half"
    body.append(_text(16, y + 12, footer, size=11, colour="#666"))
    height = y + 28
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(16, 28, result.name, size=17, weight="600"),
            _text(16, 48, result.title, size=12, colour="#444"),
            *body,
            "</svg>",
            "",
        ]
    )


def _colours(series: Sequence[Series]) -> dict[str, str]:
    names = list(dict.fromkeys(one.name for one in series))
    return {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def _bar(series: Series, y: int, longest: float, colour: str) -> list[str]:
    low, middle, high = (value / (longest or 1.0) * _ROOM for value in quartiles(series.values))
    centre = y + _BAR / 2
    return [
        _text(_LABEL - 8, y + 13, series.name, size=12, anchor="end"),
        f'<rect x="{_LABEL}" y="{y}" width="{middle:.1f}" height="{_BAR}" fill="{colour}"/>',
        f'<line x1="{_LABEL + low:.1f}" y1="{centre}" x2="{_LABEL + high:.1f}" y2="{centre}" stroke="#222"/>',
        _text(
            int(_LABEL + max(middle, high)) + 8,
            y + 13,
            f"{quartiles(series.values)[1]:.4g} {series.unit}",
            size=12,
        ),
    ]


def _text(
    x: int,
    y: int,
    text: str,
    *,
    size: int = 13,
    weight: str = "400",
    colour: str = "#111",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
