"""Decode steps that wait at a stage are computed as one pass, whichever heads they come from.

A head batches its own sessions (`schedule.py`); a stage behind several heads, or behind stages with several replicas, gets
their passes in turn, and each reads all of the weights for a few rows. Iteration-level batching (Yu et al., Orca, OSDI
2022) on every stage: what waits for its turn anyway goes along with what is before it. Frames stay as they came in, so
that records, credits and the head's own micro-batches know nothing of it. Passes with prompts go alone: the head paces
prompts by what each of them takes (`pace.py`).
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch

from stagemesh.v1.stage_pb2 import STEP_KIND_DECODE

from .history import needs_history
from .partition.interface import Activations, Batch, Partition
from .partition.ragged import Segment
from .passes import Computed, Work, compute
from .short import Size, size_of

log = logging.getLogger(__name__)


class DecodePass:
    """A pass of decode steps behind the first stage; see `engine.Joint`."""

    __slots__ = ("_model", "rows", "work")

    def __init__(self, model: Partition, work: Work) -> None:
        self._model = model
        self.work = work
        self.rows = len(work.steps)

    @classmethod
    def of(cls, model: Partition, work: Work) -> "DecodePass | None":
        """The pass as one that others may join, if it is one."""
        if not model.ragged or work.batch.given is None:
            return None
        for session, step in work.steps:
            if step.kind != STEP_KIND_DECODE or step.tokens != 1 or session.kv is None:
                return None
            # What is computed again would be counted twice there.
            if model.is_last and needs_history(session.open.sampling):
                return None
        return cls(model, work)

    def joined(self, others: Sequence["DecodePass"]) -> tuple[Callable[[], list[Computed | Exception]], Size]:
        """What computes this and the others at once, and gives what each of them would have; and how large that is."""
        works = [self.work, *(other.work for other in others)]
        size = size_of(segment for work in works for segment in work.batch.segments)
        return partial(_compute_all, self._model, works), size


def _compute_all(model: Partition, works: list[Work]) -> list[Computed | Exception]:
    """On the compute thread."""
    try:
        return list(_apart(works, compute(model, _merged(works))))
    except Exception as error:
        # One of them may be why: what is computed again writes the same keys and values to the same places.
        log.warning("passes are computed one by one, as together they failed: %r", error)
    return [_alone(model, work) for work in works]


def _alone(model: Partition, work: Work) -> Computed | Exception:
    try:
        return compute(model, work)
    except Exception as error:
        return error


def _merged(works: list[Work]) -> Work:
    """One pass of all rows, in order."""
    segments, given = [], []
    at = 0
    for work in works:
        for segment in work.batch.segments:
            segments.append(Segment(at, segment.rows, segment.position, segment.kv))
            at += segment.rows
        assert work.batch.given is not None, "the first stage's passes are not joined"
        given.append(work.batch.given)
    hidden = torch.cat([each.hidden for each in given])
    sides = {name: torch.cat([each.sides[name] for each in given]) for name in given[0].sides}
    steps = [pair for work in works for pair in work.steps]
    return Work(steps, Batch(segments, given=Activations(hidden, sides)), [])


def _apart(works: list[Work], done: Computed) -> list[Computed]:
    """What each of them would have given."""
    found = []
    at = 0
    for work in works:
        rows = slice(at, at + len(work.steps))
        at = rows.stop
        activations = Activations(
            done.activations.hidden[rows], {name: side[rows] for name, side in done.activations.sides.items()}
        )
        own = {id(session) for session in work.sessions}
        found.append(
            Computed(
                activations,
                results=[pair for pair in done.results if id(pair[0]) in own],
                failed=[pair for pair in done.failed if id(pair[0]) in own],
            )
        )
    return found
