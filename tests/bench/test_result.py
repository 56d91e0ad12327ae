import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.paired import Ratio
from bench.picture import svg
from bench.result import Bound, Result, Series


def example() -> Result:
    result = Result("transport", "frames & bytes")
    result.ratio("fast", Ratio(1.2, 1.1, 1.3, 5), Bound(1.0))
    result.ratio("slow", Ratio(3.4, 3.3, 3.5, 5), Bound(3.0, at_most=True))
    result.ratio("wild", Ratio(2.0, 1.0, 3.0, 5))
    result.series.append(Series("16 MiB", "frame <ours>", "GB/s", [1.0, 1.2, 1.1]))
    result.not_measured["shm"] = "not built yet"
    return result


def test_json_has_every_ratio_under_its_own_key_and_nothing_for_what_was_not_measured() -> None:
    found = json.loads(json.dumps(example().as_json()))
    assert found["fast"] == 1.2
    assert found["verdict"] == {"fast": "reached", "slow": "falls short"}
    assert list(found["meaningless"]) == ["wild"]
    assert "shm" not in found
    assert found["not_measured"] == {"shm": "not built yet"}


def test_text_says_what_falls_short_and_what_is_noise() -> None:
    lines = {line.split()[0]: line for line in example().as_text().splitlines() if line.strip()}
    assert ">= 1: reached" in lines["fast"]
    assert "<= 3: falls short" in lines["slow"]
    assert "[noise" in lines["wild"]
    assert "not measured: not built yet" in lines["shm"]


names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(names, names, st.lists(st.floats(0.01, 1e5), min_size=1, max_size=5)), min_size=1))
def test_the_picture_is_well_formed_whatever_things_are_called(
    measured: list[tuple[str, str, list[float]]],
) -> None:
    result = Result("any", "title <&>")
    result.series = [Series(group, name, "x/s", values) for group, name, values in measured]
    root = ET.fromstring(svg(result))
    bars = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("x")]
    assert len(bars) == len(measured)
    assert all(0 <= float(bar.get("width", "nan")) <= float(root.get("width", "0")) for bar in bars)


def test_quick_says_so() -> None:
    result = example()
    result.quick = True
    assert "too small to conclude" in svg(result)
    assert "too small to conclude" in result.as_text()


def test_bound_reads_as_written() -> None:
    assert [str(Bound(0.95)), str(Bound(3, at_most=True))] == [">= 0.95", "<= 3"]


def test_ratio_without_spread_has_zero_spread() -> None:
    assert Ratio(2.0, 2.0, 2.0, 3).spread == pytest.approx(0)
