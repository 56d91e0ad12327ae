"""What a service made while it started costs no pause later, and pauses are counted."""

import gc

import pytest

from stagemesh import garbage, metrics


@pytest.fixture
def collector():
    before, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    gc.callbacks[:] = callbacks


def test_what_was_there_is_left_out_of_collections_and_pauses_are_counted(collector):
    was_there = len(gc.get_objects())
    garbage.settle()
    assert gc.get_freeze_count() >= was_there // 2
    assert len(gc.get_objects()) < was_there // 2
    full = metrics.counter("stagemesh_gc_pause_seconds_total", "", ("generation",)).labels("2")
    before = full._value.get()
    gc.collect()
    assert full._value.get() > before
