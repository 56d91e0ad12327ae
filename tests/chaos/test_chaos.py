"""The part of the suite that fits into five minutes: one mesh, every fault that has room, one seed.

Failures and tokens are held to the letter, times with patience for a machine that others use as well; `make chaos`
has none. STAGEMESH_CHAOS_SEED repeats a run.
"""

import os
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from . import suite
from .report import transcript
from .runner import Suite
from .scenario import Scenario

SEED = int(os.environ.get("STAGEMESH_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("chaos"), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def meshes() -> AsyncIterator[Suite]:
    async with Suite(full=False) as meshes:
        yield meshes


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "chosen",
    [
        pytest.param(one, id=one.name, marks=[] if one.fault == "F1" else pytest.mark.long(each=True))
        for one in suite.ALL
        if one.in_ci
    ],
)
async def test_what_is_promised_about(meshes: Suite, chosen: Scenario) -> None:
    outcome = await meshes.perform(chosen, SEED)
    assert outcome.kept, f"STAGEMESH_CHAOS_SEED={SEED}\n{transcript(outcome)}"
