import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.__main__ import QUESTIONS, main

ROOT = Path(__file__).parents[2]


def test_help_teaches_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(name in said and question in said for name, question in QUESTIONS.items())


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["transprot"])
    assert ended.value.code == 2
    assert "transport" in capsys.readouterr().err


def test_transport_runs_and_reports_its_keys(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "bench", "transport", "--quick", "--json", "--results", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["frame_vs_grpc_bytes"] > 0
    assert found["frame_vs_protobuf"] > 0
    assert found["shm_vs_tcp_socket"] > 0
    assert found["shm_vs_gloo"] > 0
    assert not found["not_measured"]
    assert not set(found) & set(found["not_measured"])
    assert len(found["series"]) == 21
    ET.fromstring((tmp_path / "transport.svg").read_text())
