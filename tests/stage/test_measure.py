"""What a node measured of itself is remembered for its next start, and a damaged memory costs a measurement."""

from pathlib import Path

import pytest
from stagemesh.services.stage import measure
from stagemesh.services.stage.measure import Speed, known_speed


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Speed(1.5, 2.5), Speed(3.0, 4.0), Speed(5.0, 6.0)])
    monkeypatch.setattr(measure, "measure_speed", lambda device: next(found))
    assert known_speed(tmp_path / "data", "cpu") == Speed(1.5, 2.5)
    assert known_speed(tmp_path / "data", "cpu") == Speed(1.5, 2.5)
    (file,) = (tmp_path / "data").iterdir()
    for damage in ("", "[1]", '{"gflops": "x"}', '{"gflops": 1}'):
        file.write_text(damage)
        monkeypatch.setattr(measure, "measure_speed", lambda device: Speed(3.0, 4.0))
        assert known_speed(tmp_path / "data", "cpu") == Speed(3.0, 4.0)
    monkeypatch.setattr(measure, "_VALID_S", -1.0)
    monkeypatch.setattr(measure, "measure_speed", lambda device: Speed(5.0, 6.0))
    assert known_speed(tmp_path / "data", "cpu") == Speed(5.0, 6.0)
