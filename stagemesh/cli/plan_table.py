"""A plan on a terminal."""

from rich.console import Console
from rich.table import Table

from stagemesh.planning.plan import Plan

_MOST_NAMES = 3
_BAR = 10


def show(console: Console, plan: Plan) -> None:
    """Print the table (the slowest stage is marked by ">"), and what it comes to."""
    table = Table(
        title=f"{plan.problem.shape.name}: {plan.problem.shape.layers} layers", title_justify="left"
    )
    for heading in ("stage", "layers", "MiB", "nodes", "names", "pass ms", "tokens/s", "busy"):
        words = heading in ("layers", "names", "busy")
        table.add_column(
            heading,
            justify="left" if words else "right",
            no_wrap=heading != "names",
            min_width=14 if heading == "names" else None,
        )
    for nth, stage in enumerate(plan.stages):
        busy = plan.tokens_per_s / stage.tokens_per_s
        mark = "> " if nth == plan.bottleneck and len(plan.stages) > 1 else ""
        table.add_row(
            f"{mark}{nth}",
            f"{stage.first_layer}..{stage.end_layer - 1}",
            f"{stage.parameter_bytes / 2**20:.0f}",
            str(len(stage.nodes)),
            _names(stage.nodes),
            f"{stage.pass_ms:.3g}",
            f"{stage.tokens_per_s:.4g}",
            f"{busy:4.0%} {'#' * round(busy * _BAR)}",
        )
    console.print(table, markup=False)
    proven = "no plan is better" if plan.optimal else f"no plan exceeds {plan.bound:.4g} tokens/s"
    console.print(
        f"{plan.tokens_per_s:.4g} tokens/s, {plan.latency_ms:.4g} ms a token on the slowest route ({proven})",
        markup=False,
        highlight=False,
    )
    if plan.unused:
        console.print(f"unused: {_names(plan.unused)}", markup=False, highlight=False)


def _names(names: tuple[str, ...]) -> str:
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + rest
