"""`stagemesh plan` on a real checkpoint's headers, through the command."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stagemesh.cli.main import app
from tests.checkpoints import make_llama

NODES = """
nodes:
  - {name: big, memory: 4MB, ms_per_layer: {1: 0.4, 8: 0.5}, zone: a}
  - {name: small, count: 3, memory: 1.5MB, gflops: 60, memory_gbps: 8, zone: b}
links: {across: {rtt_ms: 3}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("plan")
    make_llama(made / "llama")
    (made / "nodes.yaml").write_text(NODES)
    return made


def plan(folder: Path, *words: str, nodes: str = "nodes.yaml") -> Result:
    words = ("plan", str(folder / "llama"), "--nodes", str(folder / nodes), *words)
    return CliRunner().invoke(app, words, env={"COLUMNS": "100"})


def test_json_explanation_and_picture_of_one_plan(folder: Path) -> None:
    answer = plan(folder, "--json", "--explain", "--svg", str(folder / "out.svg"))
    assert answer.exit_code == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert [stage["layers"][0] for stage in found["stages"]] == [0] + [
        stage["layers"][1] for stage in found["stages"][:-1]
    ]
    assert found["stages"][-1]["layers"][1] == found["layers"] == 8
    assert found["optimal"]
    assert found["explanation"]["bottleneck"][0].startswith(f"stage {found['bottleneck']} ")
    assert ElementTree.parse(folder / "out.svg").getroot().tag.endswith("svg")


def test_the_table_and_the_reasons_for_a_reader(folder: Path) -> None:
    answer = plan(folder, "--stages", "3", "--explain")
    assert answer.exit_code == 0, answer.stderr
    for words in ("tokens/s", "bottleneck:", "one more node:", "cuts:", "compared with:", "even split"):
        assert words in answer.stdout
    assert answer.stdout.count("before layer") == 2


def test_what_cannot_be_is_one_line_and_no_traceback(folder: Path) -> None:
    (folder / "bad.yaml").write_text("nodes: [{name: a, memory: x}, {memory: 1}]")
    for answer, says in (
        (plan(folder, nodes="bad.yaml"), "nodes[1].name: field required"),
        (plan(folder, nodes="none.yaml"), "--nodes: "),
        (plan(folder, "--stages", "9"), "--stages: the model's 8 layers can be cut into 8 at most"),
        (plan(folder, "--latency-ms", "0.001"), "latency_ms: 0.001 ms cannot be kept"),
        (plan(folder, "--objective", "fun"), "--objective: must be throughput or latency"),
        (plan(folder, "--label", "x"), "--label: 'x' is not KEY=VALUE"),
    ):
        assert answer.exit_code == 1
        assert says in answer.stderr
        assert "Traceback" not in answer.stderr
