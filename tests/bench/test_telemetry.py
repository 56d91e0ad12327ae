import os
import subprocess
import sys

from bench.children import server
from bench.otlp_sink import counted
from bench.telemetry import SWITCHABLE

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
import os, signal
from stagemesh.metrics import counter, gauge, histogram, render
def record():
    counter("c_total", "c", ("a",)).labels("x").inc(3)
    gauge("g", "g").set(5)
    histogram("h", "h", ("a", "b")).labels("x", "y").observe(1)
os.kill(os.getpid(), signal.SIGUSR1)
record()
print(render().decode(), "===")
os.kill(os.getpid(), signal.SIGUSR2)
record()
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


def test_off_means_that_nothing_is_recorded_and_on_that_it_is_again() -> None:
    off, on = run(RECORDS, PYTHONPATH=str(SWITCHABLE)).split("===")
    assert 'a="x"' not in off
    assert "g 0.0" in off
    for line in ('c_total{a="x"} 3.0', "g 5.0", 'h_count{a="x",b="y"} 1.0'):
        assert line in on
