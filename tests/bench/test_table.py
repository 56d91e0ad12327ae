import json
import shutil
from pathlib import Path

import pytest

from bench.__main__ import QUESTIONS, RESULTS, main
from bench.paired import Ratio
from bench.result import Bound, Result
from bench.table import BEGIN, END, README, load, rewritten, table


def result(name: str, value: float, low: float, high: float, **more: str) -> dict[str, object]:
    made = Result(name, "a title", not_measured=more)
    made.ratio(f"{name}_ratio", Ratio(value, low, high, 5), Bound(2.0))
    made.ratio(f"{name}_for_information", Ratio(1.0, 1.0, 1.0, 5))
    return made.as_json()


def test_readme_says_what_the_results_say() -> None:
    text = README.read_text()
    assert text == rewritten(text, load(RESULTS, list(QUESTIONS))), "run `python -m bench table`"


def test_a_row_for_each_bound_and_each_gap() -> None:
    found = table([result("hop", 2.5, 2.4, 2.6), result("router", 1.0, 0.5, 3.1, router_x="not built yet")])
    assert found.splitlines()[2:] == [
        "| [`hop`](bench/results/hop.svg) | `hop_ratio` | >= 2 | 2.50 | 2.40 .. 2.60 | reached |",
        "| [`router`](bench/results/router.svg) | `router_ratio` | >= 2 | 1.00 | 0.50 .. 3.10 | undecided (noise) |",
        "| [`router`](bench/results/router.svg) | `router_x` | | | | not measured: not built yet |",
    ]


def test_a_quick_run_concludes_nothing() -> None:
    made = result("hop", 2.5, 2.4, 2.6)
    made["quick"] = True
    assert "| a quick run: says nothing |" in table([made])


def test_results_come_in_the_order_of_the_questions_and_strangers_last(tmp_path: Path) -> None:
    for name in ("another", "router", "hop", "transport"):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(name, 1, 1, 1)))
    names = [one["benchmark"] for one in load(tmp_path, ["transport", "hop", "generate", "router"])]
    assert names == ["transport", "hop", "router", "another"]


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = rewritten(text, [result("hop", 2.5, 2.4, 2.6)])
    assert new.startswith(f"before\n{BEGIN}\n| benchmark |")
    assert new.endswith(f"| reached |\n{END}\nafter\n")
    assert rewritten(new, [result("hop", 2.5, 2.4, 2.6)]) == new


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, BEGIN + END + END, BEGIN + BEGIN + END])
def test_a_document_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="README needs one"):
        rewritten(text, [])


def test_the_command_rewrites_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(f"{BEGIN}\n{END}\n")
    results = tmp_path / "results"
    shutil.copytree(RESULTS, results)
    monkeypatch.setattr("bench.table.README", copy)
    assert main(["table", "--results", str(results)]) == 0
    assert "rewritten" in capsys.readouterr().err
    assert "`hop_vs_grpc_rtt`" in copy.read_text()
    assert main(["table", "--results", str(results)]) == 0
    assert "as it should be" in capsys.readouterr().err
