"""Tallies: as a registry and its readers see them, no different from counters."""

import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from stagemesh import metrics
from stagemesh.tallies import Tallies


def test_what_is_scraped_is_what_a_counter_would_give() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies("a_total", "Some text.", ("model", "code"))
    ours.register(tallies)
    counter = Counter("a_total", "Some text.", ("model", "code"), registry=theirs)
    for labels, amount in ((("m", "OK"), 1.0), (('"', "é"), 2.5), (("m", "OK"), 4.0)):
        tallies.labels(*labels).inc(amount)
        counter.labels(*labels).inc(amount)
    lines = [line for line in generate_latest(theirs).splitlines() if b"_created" not in line]
    assert generate_latest(ours).splitlines() == lines
    assert ours.get_sample_value("a_total", {"model": "m", "code": "OK"}) == 5.0


def test_a_name_is_made_once_and_is_of_one_kind() -> None:
    made = metrics.tallies("stagemesh_test_tallies_total", "Of a test.", ("label",))
    assert metrics.tallies("stagemesh_test_tallies_total", "Of a test.", ("label",)) is made
    with pytest.raises(ValueError, match="is a Tallies already"):
        metrics.counter("stagemesh_test_tallies_total", "Of a test.", ("label",))
    made.labels("x").inc()
    assert b'stagemesh_test_tallies_total{label="x"} 1.0' in metrics.render()


def test_counting_in_one_step_is_the_same() -> None:
    tallies = Tallies("a_total", "Some text.", ("model", "code"))
    tallies.count("m", "OK")
    tallies.count("m", "OK", amount=2.5)
    tallies.labels("m", "OK").inc()
    assert tallies.labels("m", "OK").value == 4.5


def test_wrong_labels_and_amounts_are_refused() -> None:
    tallies = Tallies("a_total", "Some text.", ("label",))
    with pytest.raises(ValueError, match="a_total has the labels"):
        tallies.count("x", "y")
    with pytest.raises(ValueError, match="cannot go back"):
        tallies.count("x", amount=-1)
    with pytest.raises(ValueError, match="a_total has the labels"):
        tallies.labels("x", "y")
    with pytest.raises(ValueError, match="cannot go back"):
        tallies.labels("x").inc(-1)
    assert [sample.value for family in tallies.collect() for sample in family.samples] == [0.0]


def test_scrapes_beside_the_counting_thread_lose_nothing() -> None:
    tallies = Tallies("a_total", "Some text.", ("label",))
    seen: list[float] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            seen.extend(sample.value for family in tallies.collect() for sample in family.samples)

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(20_000):
        tallies.labels(str(number % 50)).inc()
    stop.set()
    thread.join()
    assert sum(sample.value for family in tallies.collect() for sample in family.samples) == 20_000
    assert all(value <= 400 for value in seen)
