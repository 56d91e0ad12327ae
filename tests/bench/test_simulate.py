"""The simulation in small: nothing is lost, the same seed gives the same day, and the decisions are the production's own."""

from pathlib import Path

import pytest

from bench.simulator import day, fleet, growth
from bench.simulator.mesh import Mesh, Setting
from bench.traces import Request, Trace, Unreadable, found, models_of, read, streams

NODES = fleet.nodes(60)
MODELS = fleet.models(2, NODES, 8)


def steady(rate: float, seconds: float, *, model: int = 0, answer: int = 100) -> list[day.Arrival]:
    return [(nth / rate, model, 500, answer) for nth in range(int(rate * seconds))]


def run(arrivals: list[day.Arrival], until_s: float, **setting: object) -> Mesh:
    mesh = Mesh(NODES, MODELS, Setting(**setting))  # type: ignore[arg-type]
    mesh.run(arrivals, until_s)
    return mesh


def test_every_request_is_served_refused_or_counted_as_unfinished() -> None:
    arrivals = sorted(steady(20, 120) + steady(1, 120, model=1))
    served = run(arrivals, 150, deadline_s=20, queue=50).served
    assert served.arrived == len(arrivals)
    assert served.served + served.refused + served.unfinished == served.arrived
    assert served.refused > 0, "a queue of 50 is too short for that"
    assert served.served > 0


def test_the_same_seed_gives_the_same_day() -> None:
    arrivals = steady(5, 60)
    one, other = run(arrivals, 600), run(arrivals, 600)
    assert vars(one.served) == vars(other.served)


def test_more_load_needs_more_replicas() -> None:
    few, many = (run(steady(rate, 200), 260).served for rate in (0.5, 40))
    assert few.most_replicas < many.most_replicas
    assert few.served == 100
    assert few.node_s < many.node_s


def test_a_burst_makes_the_autoscaler_grow_and_quiet_lets_the_model_sleep() -> None:
    mesh = run(steady(40, 60), 1500, preload=False, idle_s=120)
    decided = mesh.served.decisions
    assert decided["scale.wake"] == 1
    assert decided["scale.up"] >= 1
    assert decided["scale.sleep"] == 1
    assert mesh.states[0].wanted == (0,) * MODELS[0].stages
    assert mesh.served.unfinished == 0
    assert mesh.served.removed == mesh.served.placed


def test_a_cold_request_waits_for_the_load_and_a_warm_one_does_not() -> None:
    mesh = run([(0.0, 0, 100, 10), (60.0, 0, 100, 10)], 120)
    first, second = mesh.served.first_token_s
    assert mesh.served.cold == 1
    assert first > Setting().runtime_s > second


def test_timers_are_woken_ahead_at_the_memory_of_the_keep_alive() -> None:
    """Every 20 and 25 minutes, beyond a keep-alive of five: that finds them asleep each time."""
    arrivals = sorted(
        (beat * every, model, 100, 10)
        for model, every in enumerate((1200.0, 1500.0))
        for beat in range(int(43_200 / every))
    )
    ours, none = (run(arrivals, 43_200, preload=preload, tick_s=5.0).served for preload in (True, False))
    assert none.cold == len(arrivals)
    assert ours.cold < 0.4 * none.cold
    assert any("its requests tend to come" in reason for reason in ours.reasons)
    assert ours.replica_s < 1.1 * none.replica_s


def test_the_day_tells_each_hour_how_far_it_is() -> None:
    told: list[tuple[int, float]] = []
    Mesh(NODES, MODELS, Setting(tick_s=60.0)).run(
        steady(0.01, 7200), 7300.0, lambda served, at_s: told.append((served.arrived, at_s))
    )
    assert told == [(36, 3600.0), (72, 7200.0)]


def test_what_finds_no_room_is_counted_and_its_requests_are_refused() -> None:
    mesh = Mesh({}, MODELS, Setting(deadline_s=10))
    served = mesh.run([(0.0, 0, 100, 10), (60.0, 0, 100, 10)], 120)
    assert served.without_room > 0
    assert (served.refused, served.served) == (2, 0)


def test_a_day_follows_the_rule() -> None:
    trace = Trace("t", [Request(10.0 * nth, 100, 20, str(nth % 7)) for nth in range(361)])
    arrivals = day.arrivals([trace, trace], 10)
    assert arrivals == sorted(arrivals)
    assert {model for _, model, *_ in arrivals} <= set(range(10))
    hours = [sum(int(at // 3600) == hour for at, *_ in arrivals) for hour in range(24)]
    assert hours[16] == 2 * 361 or hours[16] >= 2 * 360
    assert hours[4] < 0.5 * hours[16]
    assert day.kept(16) == pytest.approx(1)
    assert arrivals == day.arrivals([trace, trace], 10)


def test_traces_are_read_and_split_by_rule(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01.5000000,7,2\n2023-11-16 18:00:00.0000000,5,1\n"
    )
    (tmp_path / "b.jsonl").write_text(
        '{"timestamp": 500, "input_length": 9, "output_length": 3, "hash_ids": [0, 4]}\n'
        '{"timestamp": 2500, "input_length": 8, "output_length": 2, "hash_ids": [0, 4]}\n'
    )
    one, other = found(tmp_path)
    assert [each.at_s for each in one.requests] == [0.0, 1.5]
    assert (one.requests[0].prompt, one.requests[0].answer) == (5, 1)
    assert other.length_s == 2.0
    kin = models_of(other, "kin", 50)
    assert kin[0] == kin[1], "the same beginning is the same model"
    assert sum(map(len, streams(one, "runs", 3, 24.0).values())) == 2


def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n")
    with pytest.raises(Unreadable, match=r"bad\.csv, line 2"):
        read(bad)
    with pytest.raises(FileNotFoundError, match="--trace"):
        found(tmp_path / "nothing")


def test_growth_is_counted_from_real_records() -> None:
    rows = growth.table([10, 100], 6.0)
    assert [row.replicas for row in rows] == [10, 100]
    assert rows[0].keys == 21, "a model, and a replica and a node each"
    assert rows[1].stored_mb > 5 * rows[0].stored_mb
    assert rows[1].router_mb > rows[0].router_mb
    assert rows[1].writes_per_s == pytest.approx(100 * 6 / 3600)
    assert growth.event_bytes() > len(growth.records.to_json(growth.replica_record(1)))
