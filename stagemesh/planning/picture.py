"""A plan as an SVG picture: a column for each stage, as wide as its layers, with its nodes in it. Pure."""

from xml.sax.saxutils import escape

from .plan import Plan

__all__ = ["svg"]

_WIDTH, _MARGIN, _TOP, _ROW, _BAR = 960, 24, 96, 18, 120
_MOST_ROWS = 12
_BUSY, _SLOWEST, _INK, _PALE = "#2f6f9f", "#d98032", "#111", "#eef3f7"


def svg(plan: Plan) -> str:
    """The picture as SVG text. The bar under each stage shows how busy it is at the plan's rate."""
    rows = min(_MOST_ROWS, max(len(stage.nodes) for stage in plan.stages))
    height = _TOP + rows * _ROW + _BAR + 70
    gap = 14.0
    room = _WIDTH - 2 * _MARGIN - gap * (len(plan.stages) - 1)
    layers = plan.problem.shape.layers
    least = min(70.0, room / len(plan.stages))
    spare = room - least * len(plan.stages)
    body: list[str] = []
    x = float(_MARGIN)
    for nth, stage in enumerate(plan.stages):
        width = least + spare * (stage.end_layer - stage.first_layer) / layers
        body += _column(plan, nth, x, width, rows)
        x += width
        if nth + 1 < len(plan.stages):
            middle = _TOP + 14
            body.append(
                f'<path d="M{x + 1:.1f} {middle} h{gap - 2:.1f} m-4 -4 l4 4 l-4 4" stroke="{_INK}" fill="none"/>'
            )
        x += gap
    proven = "no plan is better" if plan.optimal else f"no plan exceeds {plan.bound:.4g} tokens/s"
    head = (
        f"{plan.tokens_per_s:.4g} tokens/s, {plan.latency_ms:.4g} ms a token on the slowest route; "
        f"{len(plan.stages)} stages; {proven}"
    )
    foot = "bar: share of its rate that a stage is busy; orange: the slowest stage"
    if plan.unused:
        foot += f"; {len(plan.unused)} nodes unused"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            _text(_MARGIN, 32, f"{plan.problem.shape.name}: {layers} layers", 17),
            _text(_MARGIN, 54, head, 12, "#444"),
            *body,
            _text(_MARGIN, height - 16, foot, 11, "#666"),
            "</svg>",
            "",
        ]
    )


def _column(plan: Plan, nth: int, x: float, width: float, rows: int) -> list[str]:
    stage = plan.stages[nth]
    colour = _SLOWEST if nth == plan.bottleneck else _BUSY
    busy = plan.tokens_per_s / stage.tokens_per_s
    base = _TOP + 28 + rows * _ROW + 12
    letters = max(3, int(width / 6.6))
    out = [
        f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="{28 + rows * _ROW}" fill="{_PALE}" '
        f'stroke="{colour}"/>',
        f'<rect x="{x:.1f}" y="{_TOP}" width="{width:.1f}" height="24" fill="{colour}"/>',
        _text(x + 5, _TOP + 16, _short(f"{stage.first_layer}..{stage.end_layer - 1}", letters), 12, "#fff"),
    ]
    shown = list(stage.nodes[:rows])
    if len(stage.nodes) > rows:
        shown[-1] = f"and {len(stage.nodes) - rows + 1} more"
    out += [
        _text(x + 5, _TOP + 28 + _ROW * row + 13, _short(name, letters), 11) for row, name in enumerate(shown)
    ]
    tall = (_BAR - 50) * busy
    out += [
        f'<rect x="{x:.1f}" y="{base}" width="{width:.1f}" height="{_BAR - 50}" fill="none" stroke="#bbb"/>',
        f'<rect x="{x:.1f}" y="{base + _BAR - 50 - tall:.1f}" width="{width:.1f}" height="{tall:.1f}" fill="{colour}"/>',
        _text(x, base + _BAR - 34, _short(f"{stage.tokens_per_s:.4g}/s", letters), 11),
        _text(x, base + _BAR - 20, _short(f"{stage.pass_ms:.3g} ms", letters), 11),
    ]
    return out


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _text(x: float, y: float, text: str, size: int, colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
