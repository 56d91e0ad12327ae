import os
import subprocess
import sys

import pytest

from bench.children import server
from bench.otlp_sink import counted
from bench.telemetry import NO_METRICS, OFF, ON, _check

EXPORTS = """
import asyncio
from stagemesh.tracing import setup_tracing, shutdown_tracing, tracer
async def main():
    setup_tracing("a", "b")
    for _ in range(7):
        tracer().start_span("x").end()
    await shutdown_tracing()
asyncio.run(main())
"""

RECORDS = """
from stagemesh.metrics import counter, gauge, histogram, render
counter("c_total", "c", ("a",)).labels("x").inc(3)
gauge("g", "g").set(5)
histogram("h", "h", ("a", "b")).labels("x", "y").observe(1)
print(render().decode())
"""


def run(script: str, **env: str) -> str:
    argv = [sys.executable, "-c", script]
    return subprocess.run(
        argv, env={**os.environ, **env}, check=True, capture_output=True, text=True, timeout=60
    ).stdout


async def test_the_sink_counts_what_a_service_exports() -> None:
    async with server("bench.otlp_sink") as port:
        run(EXPORTS, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
        spans, size = await counted(f"127.0.0.1:{port}")
    assert spans == 7
    assert size > 7 * 30


def test_off_means_that_nothing_is_recorded() -> None:
    assert 'c_total{a="x"} 3.0' in run(RECORDS)
    off = run(RECORDS, PYTHONPATH=str(NO_METRICS))
    assert 'a="x"' not in off
    assert "g 0.0" in off


@pytest.mark.parametrize(
    ("spans", "on", "off", "said"), [(0, 5, 0, "was not on"), (9, 0, 0, "was not on"), (9, 5, 5, "not off")]
)
def test_a_comparison_of_the_wrong_things_is_refused(spans: int, on: float, off: float, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        _check(spans, {ON: on, OFF: off})
