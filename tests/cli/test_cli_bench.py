"""`bench` against a scripted router: what it asks for, what it prints, what it refuses."""

import io
import json

import pytest
from rich.console import Console

from stagemesh.cli.bench_report import Report, as_dict, show
from stagemesh.token_time import Load, StagePart

MS = 1e-3


@pytest.fixture
def bench(stagemesh, router):
    return lambda *rest, **more: stagemesh("bench", *rest, "--address", router.address, **more)


def test_it_runs_each_number_of_streams_after_a_warm_up(bench, router):
    result = bench("demo", "--streams", "3,1", "--prompt-tokens", 5, "--tokens", 3, "--rounds", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert len(router.requests) == (3 + 1) * 3
    prompts = {tuple(request.tokens.ids) for request in router.requests}
    assert len(prompts) == len(router.requests), "a prompt was sent twice"
    for request in router.requests:
        assert len(request.tokens.ids) == 5
        assert (request.max_tokens, request.temperature, request.ignore_eos) == (3, 0, True)
        assert request.cache_no_lookup
        assert request.cache_no_store
    found = json.loads(result.stdout)
    assert [load["streams"] for load in found["loads"]] == [1, 3]
    for load in found["loads"]:
        assert len(load["tokens_per_s"]["rounds"]) == 2
        (stage,) = load["stages"]
        # Told: 900 us of one step with the first token, 1500 us of three at the end.
        assert stage["compute_ms"] == pytest.approx(0.3)
        assert stage["rows"] == 6
    assert "round 2 of 2" in result.stderr


def test_it_prints_where_the_time_went_and_what_would_help(bench):
    result = bench("--streams", "1,2", "--rounds", 1)
    assert result.exit_code == 0, result.stderr
    for words in ("TOKENS/S", "QUEUE COMPUTE ENCODE NETWORK", "BUBBLE", "the rest", "in all", "measured"):
        assert words in result.stdout
    for words in ("model", "It assumes", "Fitted, ms: stage 0", "Bottleneck at 2 streams", "tokens/s (+"):
        assert words in result.stdout


@pytest.mark.parametrize("streams", ["", "0", "1,x", "1,,2", "-3", "5000"])
def test_streams_that_are_no_numbers_are_refused_with_status_2(stagemesh, streams):
    result = stagemesh("bench", "--streams", streams)
    assert result.exit_code == 2
    assert "--streams" in result.stderr
    assert "such as 1,8" in result.stderr


def test_clear_errors(bench, stagemesh, router, tmp_path):
    def said(result, *words):
        assert result.exit_code == 1, result.stderr
        assert result.stderr.splitlines()[-1].startswith("stagemesh: ")
        for word in words:
            assert word in result.stderr

    said(bench("dmeo"), "'dmeo' is neither a deployed model nor a folder", "deployed are demo")
    said(stagemesh("bench", "--address", "127.0.0.1:1"), "nothing answers at 127.0.0.1:1")
    said(stagemesh("bench", tmp_path), "config.json")
    router.spec.task = "embed"
    said(bench(), "demo does not generate text")
    router.spec.task, router.spec.context_length = "generate", 100
    said(bench("--prompt-tokens", 90), "90 + 64 exceed the context of 100")
    assert router.requests == []


def load(streams: int, step_ms: float, compute_ms: tuple[float, float], batches: int = 2) -> Load:
    parts = tuple(
        StagePart(stage, 1, 0.1 * MS, compute * MS, 0.1 * MS, 0.3 * MS, 1 * MS, max(1, streams / batches))
        for stage, compute in enumerate(compute_ms)
    )
    gaps = (step_ms * MS,) * 10
    return Load(streams, (streams / step_ms / MS,) * 3, (0.05,) * streams, gaps, step_ms * MS, parts)


def test_the_prediction_stands_beside_the_measurement():
    report = Report("m", "A", 64, 64, 3, (load(1, 7, (2, 3)), load(8, 18, (5, 9))))
    one, eight = as_dict(report)["loads"]
    assert one["predicted"]["error"] == pytest.approx(0, abs=0.001)
    # Two batches of four rows; stage 1 takes 9 ms for each and never waits.
    assert eight["predicted"]["between_tokens_ms"] == pytest.approx(18)
    assert eight["predicted"]["bound"] == "stage"
    assert [stage["predicted_bubble"] for stage in eight["stages"]] == pytest.approx([8 / 18, 0], abs=0.001)
    assert eight["measured"]["compute_ms"] == pytest.approx(14)
    for each in (one, eight):
        for divided, step in (
            (each["measured"], each["between_tokens_ms"]["mean"]),
            (each["predicted"], each["predicted"]["between_tokens_ms"]),
        ):
            parts = (divided["compute_ms"], divided["hops_ms"], divided["waiting_ms"])
            assert sum(parts) == pytest.approx(step, abs=0.001)
        stages = sum(
            stage[f"{part}_ms"]
            for stage in each["stages"]
            for part in ("queue", "compute", "encode", "network")
        )
        assert stages + each["rest_ms"] == pytest.approx(each["between_tokens_ms"]["mean"], abs=0.001)
    assert as_dict(report)["bottleneck"] == {"streams": 8, "stage": 1, "bound": "stage"}
    assert as_dict(report)["would_help"][0]["what"].startswith(("one more replica of stage 1", "a cut"))


@pytest.mark.parametrize(("batches", "said"), [(2, False), (1, True)])
def test_it_says_when_streams_travel_in_fewer_batches_than_they_could(batches, said):
    report = Report("m", "A", 64, 64, 3, (load(1, 7, (2, 3)), load(8, 18, (5, 9), batches)))
    console = Console(record=True, width=120, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    assert ("But the streams travel in 1.0 batches of 8.0, not in 2 of 4.0" in text) == said
    assert f"{batches}.0 x {8 / batches}" in text
