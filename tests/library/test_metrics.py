"""Metrics over HTTP, and the event loop's lag."""

import asyncio
import time
import urllib.request

import pytest

from stagemesh import metrics
from stagemesh.errors import ConfigError
from stagemesh.loop_lag import LoopLag
from tests.library.etcd_process import free_port


def test_made_once_per_name():
    first = metrics.counter("stagemesh_test_once_total", "A test.", ("kind",))
    assert metrics.counter("stagemesh_test_once_total", "A test.", ("kind",)) is first
    with pytest.raises(ValueError, match="Counter already"):
        metrics.gauge("stagemesh_test_once_total", "A test.")


def test_served_over_http_and_port_freed():
    metrics.histogram("stagemesh_test_step_seconds", "A test.").observe(0.003)
    port = free_port()
    server = metrics.serve_metrics(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    assert 'stagemesh_test_step_seconds_bucket{le="0.005"} 1.0' in text
    assert 'stagemesh_test_step_seconds_bucket{le="0.0025"} 0.0' in text
    assert "process_resident_memory_bytes" in text
    assert metrics.render().decode().count("stagemesh_test_step_seconds_count") == 1
    with pytest.raises(ConfigError, match=f"metrics port {port} is taken"):
        metrics.serve_metrics(port)
    server.close()
    again = metrics.serve_metrics(port)
    assert again.port == port
    again.close()


def test_port_zero_is_off():
    assert metrics.serve_metrics(0) is None


async def test_blocked_loop_shows():
    async with LoopLag(period_s=0.02) as lag:
        await asyncio.sleep(0.1)
        time.sleep(0.3)  # what must not be done
        await asyncio.sleep(0.03)
        assert lag.worst_s > 0.2
        assert lag.milliseconds > 20
        assert metrics.REGISTRY.get_sample_value("stagemesh_event_loop_lag_seconds") > 0.02


def test_lag_fades():
    lag = LoopLag()
    lag.observe(1.0)
    assert lag.milliseconds == pytest.approx(200)
    for _ in range(50):
        lag.observe(0.0)
    assert lag.milliseconds < 1
    assert lag.worst_s == 1.0
