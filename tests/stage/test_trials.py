"""What a trial found is remembered across processes, only where it was in favour, and never for another shape."""

from pathlib import Path

import pytest
import torch
from stagemesh.services.stage.partition import trials as trials_module
from stagemesh.services.stage.partition.trials import Trials


def asked(trials: Trials, outcome: bool, *facts: object) -> tuple[bool, bool]:
    """What is found, and whether it was tried for that."""
    tried = []

    def trial() -> bool:
        tried.append(1)
        return outcome

    return trials.pays("form", *facts, trial=trial), bool(tried)


def test_what_paid_is_not_tried_again_by_another_process(tmp_path: Path) -> None:
    first, second = Trials(), Trials()
    first.use(tmp_path / "data")
    assert asked(first, True, 8, torch.float32) == (True, True)
    assert asked(first, False, 8, torch.float32) == (True, False)
    second.use(tmp_path / "data")
    assert asked(second, False, 8, torch.float32) == (True, False)
    assert asked(second, False, 16, torch.float32) == (False, True)
    assert asked(second, False, 8, torch.bfloat16) == (False, True)


def test_what_did_not_pay_is_tried_again(tmp_path: Path) -> None:
    trials = Trials()
    trials.use(tmp_path)
    assert asked(trials, False, 8) == (False, True)
    assert asked(trials, True, 8) == (True, True)


def test_without_a_folder_nothing_is_remembered() -> None:
    trials = Trials()
    assert asked(trials, True, 8) == (True, True)
    assert asked(trials, False, 8) == (False, True)


@pytest.mark.parametrize("content", ["", "{", '{"a": true}', "[1, null]"])
def test_a_damaged_file_costs_trials(tmp_path: Path, content: str) -> None:
    (tmp_path / "trials.json").write_text(content)
    trials = Trials()
    trials.use(tmp_path)
    assert asked(trials, True, 8) == (True, True)


def test_other_code_or_threads_are_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials()
    trials.use(tmp_path)
    assert asked(trials, True, 8) == (True, True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert asked(trials, False, 8) == (False, True)
    monkeypatch.undo()
    monkeypatch.setattr(trials_module, "code_digest", lambda: "another build")
    again = Trials()
    again.use(tmp_path)
    assert asked(again, False, 8) == (False, True)
