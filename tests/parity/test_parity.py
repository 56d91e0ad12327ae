"""A part of the parity matrix, another one each day; and that the matrix would notice what it is there to notice."""

import datetime
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from stagemesh.services.stage import verify as verifying
from stagemesh.services.stage.partition import causal
from stagemesh.services.stage.partition.causal import CausalPartition
from stagemesh.services.stage.partition.ragged import Ragged, Segment
from stagemesh.services.stage.partition.skeleton import Skeleton, compact
from torch import nn

from . import build, matrix, report
from .causal import make

# As many days until every row has been run again.
PARTS = 8
ROWS = [(name, stages) for name in matrix.families() for stages in matrix.STAGES]


def todays_part() -> int:
    """Which rows are run: STAGEMESH_PARITY_PART, or by the date."""
    chosen = os.environ.get("STAGEMESH_PARITY_PART")
    return int(chosen) if chosen else datetime.datetime.now(datetime.UTC).toordinal() % PARTS


@pytest.mark.parametrize(
    ("family", "stages"), [row for n, row in enumerate(ROWS) if n % PARTS == todays_part()]
)
def test_split_and_whole_agree(family: str, stages: int) -> None:
    kept = {(one.model_type, one.task, one.stages): one for one in report.load()}
    found = matrix.run(family, stages)
    if found.passed:
        assert kept[found.model_type, found.task, stages].passed, (
            "it agrees now: `make parity` writes it down"
        )
    else:
        failed = [one for one in kept.values() if one.stages == stages and not one.passed]
        assert family in [one.model_type for one in failed], found.reason


def test_the_page_is_that_of_the_certificates() -> None:
    assert report.PAGE.read_text() == report.page(report.load())


def test_every_row_is_written_down() -> None:
    kept = report.load()
    assert len(kept) == len(ROWS)
    certified = {
        one.model_type + one.task
        for one in kept
        if all(other.passed for other in kept if (other.model_type, other.task) == (one.model_type, one.task))
    }
    language = {name for name in certified if name.endswith("generate")}
    assert len(certified) >= 100
    assert len(language) >= 70


# ---- three bugs, on purpose ----


def without_last_layer(skeleton: Skeleton, *more: int) -> None:
    compact(skeleton, *more)
    skeleton.base.set_submodule(skeleton.plan.layers, nn.ModuleList(list(skeleton.layers)[:-1]))


def skip_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "compact", without_last_layer)


def restart_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CausalPartition._call

    def wrong(self: CausalPartition, batch: Any, rows: slice, positions: torch.Tensor, *more: Any) -> Any:
        return call(self, batch, rows, positions - positions[0], *more)

    monkeypatch.setattr(CausalPartition, "_call", wrong)


def drop_state(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = CausalPartition._forward_alone

    def forgetful(self: CausalPartition, batch: Any, segment: Any) -> Any:
        segment.kv.own = None
        return alone(self, batch, segment)

    monkeypatch.setattr(CausalPartition, "_forward_alone", forgetful)


class _Restarted(Ragged):
    """Positions count from 0 in every pass."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.positions = self.positions - self.positions[0]


class _Forgetful(Ragged):
    """Every pass is the first one of its sessions."""

    def __init__(self, segments: list[Segment], *arguments: Any) -> None:
        super().__init__([Segment(each.start, each.rows, 0, each.kv) for each in segments], *arguments)


def restart_ragged_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "Ragged", _Restarted)


def forget_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, "Ragged", _Forgetful)


# One family that goes through the model library's own cache, and one whose sessions share passes and blocks.
BUGS = [
    *(("starcoder2", bug) for bug in (skip_a_layer, restart_positions, drop_state)),
    *(("llama", bug) for bug in (skip_a_layer, restart_ragged_positions, forget_blocks)),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    build.quiet()
    folder = tmp_path_factory.mktemp("parity")
    families = sorted({family for family, _ in BUGS})
    for family in families:
        make(family, folder / family)
    return {family: folder / family for family in families}


@pytest.mark.parametrize("family", ["starcoder2", "llama"])
def test_without_a_bug_they_agree(checkpoints: dict[str, Path], family: str) -> None:
    assert verifying.verify(str(checkpoints[family]), 2).passed


@pytest.mark.parametrize(("family", "bug"), BUGS)
def test_a_bug_is_noticed(
    checkpoints: dict[str, Path], family: str, bug: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    found = verifying.verify(str(checkpoints[family]), 2)
    assert not found.passed
    assert found.reason
