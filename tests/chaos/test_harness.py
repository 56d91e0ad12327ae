"""The suite notices what it is there to notice: lost streams, wrong tokens, broken bounds; and its proxy cuts one way."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stagemesh.errors import Unavailable
from tests.checkpoints import make_llama

from .decided import decided
from .load import TOKENS, Load, Place, Stream
from .picture import svg
from .proxy import FROM_TARGET, TO_TARGET, Proxy
from .report import markdown, write
from .scenario import Baseline, Outcome, Run, Scenario, perform, quantile
from .stages import rebuilt

GOLDEN = {Place(number): list(range(number, number + TOKENS)) for number in range(4)}


def run_of(*, full: bool = True) -> Run:
    return Run(
        Outcome("F1", "a fault", 7, "a_fault"), SimpleNamespace(), None, Baseline(GOLDEN, 0.1), full=full
    )


def ended(number: int, tokens: list[int] | None = None, **more: object) -> Stream:
    place, now = Place(number), time.monotonic()
    more.setdefault("waits", [(now, 0.1)])
    return Stream(place, now, TOKENS, tokens or GOLDEN[place], ended=now, **more)


def test_answers_that_are_as_before_keep_the_promise() -> None:
    run = run_of()
    run.judge([ended(number) for number in range(4)])
    assert run.outcome.kept
    assert (run.outcome.attempted, run.outcome.failed, run.outcome.wrong) == (4, 0, 0)


@pytest.mark.parametrize(
    "tokens",
    [
        [*GOLDEN[Place(1)][:-1], 0],
        GOLDEN[Place(1)][:-1],
        [*GOLDEN[Place(1)][:50], *GOLDEN[Place(1)][49:]],
        [*GOLDEN[Place(1)][:50], *GOLDEN[Place(1)][51:], 5],
    ],
    ids=["changed", "lost", "repeated", "skipped"],
)
def test_one_wrong_token_of_one_stream_breaks_the_promise(tokens: list[int]) -> None:
    run = run_of()
    run.judge([ended(0), ended(1, tokens), ended(2)])
    assert not run.outcome.kept
    assert run.outcome.wrong == 1
    assert any("stream 1 differs" in line for line in run.outcome.transcript)


def test_one_failed_stream_breaks_the_promise() -> None:
    run = run_of()
    run.judge([ended(0), ended(1, [1, 2], error=Unavailable("no route"))])
    assert not run.outcome.kept
    assert (run.outcome.failed, run.outcome.wrong) == (1, 0)


def test_only_waits_that_the_fault_could_make_longer_are_stalls() -> None:
    run = run_of()
    streams = [ended(0, waits=[(10.0, 5.0), (20.0, 0.5), (21.0, 1.0)]), ended(1, waits=[(10.0, 4.0)])]
    run.judge(streams)
    assert run.outcome.stalls_s == [5.0, 4.0]
    run = run_of()
    run.struck_at = 19.9
    run.judge(streams)
    assert run.outcome.stalls_s == [1.0]  # the other one had ended


def test_streams_that_have_tokens_at_a_replica_are_known() -> None:
    running = [ended(number, route=("a", "b")) for number in range(3)]
    for each in running:
        each.ended = 0.0
    running[1].tokens = []
    running[2].route = ("c", "b")
    seen = Load([*running, ended(3, route=("a", "b"))])
    assert [seen.at(name) for name in "abc"] == [1, 2, 1]


def test_patience_is_for_times_only() -> None:
    for full, kept in ((True, False), (False, True)):
        run = run_of(full=full)
        run.within("a time", 2.0, 1.0)
        assert run.outcome.kept == kept
    run = run_of(full=False)
    run.at_most("a count", 2, 1)
    assert not run.outcome.kept


async def test_a_scenario_that_breaks_off_is_not_kept() -> None:
    async def body(run: Run) -> None:
        raise RuntimeError("out of luck")

    outcome = await perform(
        Scenario("F1", "x", body), 1, SimpleNamespace(processes=[]), None, None, full=True
    )
    assert not outcome.kept
    assert "out of luck" in outcome.error


def test_the_same_seed_chooses_the_same() -> None:
    assert run_of().rng.random() == run_of().rng.random()


def test_quantiles() -> None:
    assert quantile([], 0.99) == 0
    assert quantile(range(1, 101), 0.5) == 50
    assert quantile(range(1, 101), 0.99) == 99


def test_the_report_tells_of_what_was_broken(tmp_path: Path) -> None:
    run = run_of()
    run.judge([ended(0), ended(1, [1], error=Unavailable("no route"))])
    run.within("p99 stall", 3.25, 1.0)
    run.untested("a fault of another kind")
    write([run.outcome], tmp_path, None, 7, 1)
    table = (tmp_path / "chaos.md").read_text()
    assert "| F1 a fault | 1 | 2 | 1 | 0 |" in table
    assert "broken in 1 of 1 runs" in table
    assert "| F1 | p99 stall | 1 s | 3.25 s | 0 of 1 |" in table
    assert "- a fault of another kind" in table
    assert table == markdown([run.outcome], 7, 1)
    assert "F1" in (tmp_path / "chaos.svg").read_text()
    assert len(list(tmp_path.glob("*F1-a_fault-seed7.txt"))) == 1


def test_the_picture_takes_any_time() -> None:
    assert svg({"F1": [0.0, 1e-9, 5.0, 1e9]}).count("<circle") == 4


# ---- answers that hang on a rounding error ----


@torch.inference_mode()
def test_near_ties_are_told_from_clear_answers(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    folder = make_llama(tmp_path / "llama", layers=1)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    place = Place(0)
    answer = int(model(torch.tensor([place.prompt])).logits[0, -1].argmax())
    assert decided(folder, {place: [answer]}) == {place}
    # Two rows of the output layer that are equal: two tokens that are equally likely.
    model.lm_head.weight[(answer + 1) % 512] = model.lm_head.weight[answer]
    model.save_pretrained(folder)
    assert decided(folder, {place: [answer]}) == set()


# ---- the proxy ----


class Echo:
    """Answers each line with itself, and keeps what it got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.port = 0

    async def __aenter__(self) -> "Echo":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            self.got.append(line)
            writer.write(line)
        writer.close()


async def got(reader: asyncio.StreamReader, within_s: float = 20.0) -> bytes:
    async with asyncio.timeout(within_s):
        return await reader.readline()


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await got(reader) == b""
    except OSError:
        return True


@pytest.mark.parametrize(("way", "arrives"), [(TO_TARGET, False), (FROM_TARGET, True)])
async def test_a_cut_direction_carries_nothing_until_it_is_healed(way: str, arrives: bool) -> None:
    async with Echo() as echo:
        proxy = Proxy(echo.port)
        await proxy.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"before\n")
        assert await got(reader) == b"before\n"
        assert proxy.cut(way) == 1
        writer.write(b"cut\n")
        with pytest.raises(TimeoutError):
            await got(reader, 0.3)
        assert (b"cut\n" in echo.got) == arrives
        proxy.heal()
        assert await got(reader) == b"cut\n"
        writer.close()
        await proxy.stop()


async def test_a_cut_concerns_one_process_and_its_new_connections() -> None:
    async with Echo() as echo:
        proxy = Proxy(echo.port)
        await proxy.start()
        assert proxy.cut(TO_TARGET, from_pid=1) == 0
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"another process\n")
        assert await got(reader) == b"another process\n"
        assert proxy.cut(TO_TARGET, from_pid=os.getpid()) == 1
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        late_writer.write(b"late\n")
        with pytest.raises(TimeoutError):
            await got(late_reader, 0.3)
        proxy.heal()
        assert await got(late_reader) == b"late\n"
        for each in (writer, late_writer):
            each.close()
        await proxy.stop()


async def test_an_end_that_goes_takes_the_other_with_it() -> None:
    async with Echo() as echo:
        proxy = Proxy(echo.port)
        await proxy.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x\n")
        assert await got(reader) == b"x\n"
        assert proxy.reset() == 1
        assert await closed(reader)
        await proxy.stop()


async def test_nobody_behind_the_proxy_is_a_broken_connection_at_once() -> None:
    async with Echo() as echo:
        port = echo.port
    proxy = Proxy(port)
    await proxy.start()
    reader, _ = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await closed(reader)
    await proxy.stop()


async def test_what_a_node_rebuilt_is_that_of_all_its_models() -> None:
    name = "stagemesh_stage_rebuilt_tokens_total"
    samples = {
        (name, 'model="m",stage="0"'): 70.0,
        (name, 'model="fetched",stage="0"'): 0.0,
        (name, 'model="m",stage="2"'): 5.0,
        ("stagemesh_stage_tokens_total", 'model="m",stage="0"'): 900.0,
    }

    async def metrics(process: object) -> dict[tuple[str, str], float]:
        return samples

    run = run_of()
    run.mesh = SimpleNamespace(stage_processes=[SimpleNamespace(pid=11)], metrics=metrics)
    assert await rebuilt(run) == {(11, 0): 70.0, (11, 2): 5.0}
