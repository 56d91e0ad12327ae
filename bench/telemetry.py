"""What metrics and spans cost: decode tokens/s of 8 streams with all of them, beside a mesh that has none.

On: every process exports its spans to a receiver (a process of its own, which keeps them unread), every metric is
recorded, and the router's page of metrics is read once a second. Off: no endpoint for spans, and `bench/no_metrics` first on
the processes' import path, whose `sitecustomize` makes every method of a metric do nothing. stagemesh itself has no
switch for metrics: they are always recorded. `tiny` fp32, two stages of one thread, through the router.
"""

import asyncio
import contextlib
import os
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import fmean

from bench.children import server
from bench.meshes import deployed, mesh, prompts, stream
from bench.options import Options, say
from bench.otlp_sink import counted
from bench.paired import paired_ratio
from bench.result import Bound, Result, Series
from bench.streams import decode_rate
from stagemesh import AsyncClient

STREAMS = 8
TOKENS_IN, TOKENS_OUT = 64, 192
ROUNDS, REPEATS = 6, 3
ON, OFF = "metrics and spans on", "both off"
NO_METRICS = Path(__file__).with_name("no_metrics")
SCRAPE_S = 1.0


async def run(options: Options) -> Result:
    """Both meshes, taking turns: A B B A, a few times in each round."""
    result = Result("telemetry", f"decode tokens/s of {STREAMS} streams, {TOKENS_OUT} tokens each, tiny fp32")
    new_tokens = 16 if options.quick else TOKENS_OUT
    batch = prompts("tiny", STREAMS, TOKENS_IN)
    rates: dict[str, list[float]] = {ON: [], OFF: []}
    path = os.pathsep.join(filter(None, (str(NO_METRICS), os.environ.get("PYTHONPATH", ""))))
    async with (
        server("bench.otlp_sink") as port,
        mesh(2, env={"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}) as with_all,
        mesh(2, env={"PYTHONPATH": path, "OTEL_SDK_DISABLED": "true"}) as without,
        with_all.client() as client_on,
        without.client() as client_off,
        deployed(with_all, "tiny", "fp32", 2) as model_on,
        deployed(without, "tiny", "fp32", 2) as model_off,
    ):
        page = f"http://{with_all.http_address}/metrics"
        told = {
            ON: await _tokens_told(page),
            OFF: await _tokens_told(f"http://{without.http_address}/metrics"),
        }
        contenders = {ON: (client_on, model_on), OFF: (client_off, model_off)}
        for number in range(options.times(ROUNDS) + 1):
            # There and back, a few times: drift cancels out, and 2 % become visible.
            found: dict[str, list[float]] = {ON: [], OFF: []}
            repeats = 1 if options.quick or number == 0 else REPEATS
            for name in (ON, OFF, OFF, ON) * repeats:
                async with _scraped(page if name == ON else ""):
                    found[name].append(await _rate(*contenders[name], batch, new_tokens))
            if number:
                for name, pair in found.items():
                    rates[name].append(fmean(pair))
            if number:
                say(", ".join(f"{name} {rates[name][-1]:.0f} tok/s" for name in rates))
        await asyncio.sleep(2.0)  # exporters send once a second
        spans, size = await counted(f"127.0.0.1:{port}")
        told[ON] = await _tokens_told(page) - told[ON]
        told[OFF] = await _tokens_told(f"http://{without.http_address}/metrics") - told[OFF]
    _check(spans, told)
    requests = told[ON] / new_tokens
    result.notes.append(f"{spans / requests:.0f} spans of {size / max(spans, 1):.0f} bytes a request")
    group = f"tiny fp32, {STREAMS} streams"
    for name, values in rates.items():
        result.series.append(Series(group, name, "tok/s", values))
    result.ratio("telemetry_vs_off", paired_ratio(rates[ON], rates[OFF]), Bound(0.98))
    return result


async def _rate(client: AsyncClient, model: str, batch: list[list[int]], new_tokens: int) -> float:
    return decode_rate(await asyncio.gather(*(stream(client, model, ids, new_tokens) for ids in batch)))


@contextlib.asynccontextmanager
async def _scraped(page: str) -> AsyncIterator[None]:
    """Read the page once a second meanwhile, as Prometheus would."""

    async def scrape() -> None:
        while page:
            await asyncio.to_thread(_read, page)
            await asyncio.sleep(SCRAPE_S)

    task = asyncio.create_task(scrape())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _tokens_told(page: str) -> float:
    """The router's own count of the tokens that it sent."""
    text = await asyncio.to_thread(_read, page)
    lines = [line for line in text.splitlines() if line.startswith("stagemesh_tokens_generated_total{")]
    return sum(float(line.split()[-1]) for line in lines)


def _read(page: str) -> str:
    with urllib.request.urlopen(page, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def _check(spans: int, told: dict[str, float]) -> None:
    """Raise when on was not on, or off not off: the comparison would say nothing."""
    if not spans or not told[ON]:
        raise RuntimeError(f"telemetry was not on: {spans} spans and {told[ON]:.0f} tokens counted")
    if told[OFF]:
        raise RuntimeError(f"metrics were not off: {told[OFF]:.0f} tokens counted")
