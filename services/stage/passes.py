"""One pass: what goes in, and what the compute thread makes of it. `outgoing.py` has the frames that come out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from stagemesh.errors import InternalError, StagemeshError
from stagemesh.tensor import TensorView
from stagemesh.v1.stage_pb2 import (
    STEP_KIND_PREFILL,
    STEP_KIND_STATELESS,
    Frame,
    HopRecord,
    RouteHop,
    Step,
    StepResult,
    Token,
)

from .history import History, needs_history
from .partition.interface import Activations, Batch, Partition
from .partition.ragged import Segment
from .sampler import choose
from .session import ReplicaSession
from .tensors import from_message, from_view


@dataclass(slots=True)
class Work:
    """Steps of known sessions that go through the next pass together.

    Attributes:
        steps: in the order of their rows.
        batch: the rows.
        hops: what the steps went through before.
        network_us: how long they were on the way here.
        frame: the frame with just these steps that they came in, if any; it goes on if they stay together.
        sessions: those of the steps, each once.
    """

    steps: list[tuple[ReplicaSession, Step]]
    batch: Batch
    hops: Sequence[HopRecord]
    network_us: int = 0
    frame: Frame | None = None
    sessions: list[ReplicaSession] = field(init=False)

    def __post_init__(self) -> None:
        if len(self.steps) == 1:
            self.sessions = [self.steps[0][0]]
        else:
            self.sessions = list({id(session): session for session, _ in self.steps}.values())

    @property
    def rebuild(self) -> bool:
        """Whether it only builds state; such a step is alone in its pass."""
        return self.steps[0][1].rebuild

    @property
    def stateless(self) -> bool:
        """Whether any of it is."""
        return any(session.kv is None for session in self.sessions)


@dataclass(slots=True)
class Computed:
    """What a pass gave: activations of all rows; on the last stage also results (chosen tokens, chunks that are done),
    stateless outputs, and their failures.
    """

    activations: Activations
    results: list[tuple[ReplicaSession, StepResult]] = field(default_factory=list)
    outputs: list[tuple[ReplicaSession, StepResult, torch.Tensor]] = field(default_factory=list)
    failed: list[tuple[ReplicaSession, StagemeshError]] = field(default_factory=list)


def segments_of(steps: list[tuple[ReplicaSession, Step]]) -> list[Segment]:
    """Where the rows of each step lie in their pass."""
    segments = []
    at = 0
    for session, step in steps:
        segments.append(Segment(at, step.tokens, step.position, session.kv))
        at += step.tokens
    return segments


def compute(model: Partition, work: Work) -> Computed:
    """Run a pass; on the compute thread."""
    done = Computed(model.forward(work.batch))
    if not model.is_last:
        if not done.activations.hidden.is_cpu:
            done.activations.hidden = done.activations.hidden.cpu()
        return done
    sampled = [
        (session, step, segment.start + segment.rows - 1)
        for (session, step), segment in zip(work.steps, work.batch.segments, strict=True)
        if step.sample
    ]
    if sampled:
        logits = model.logits(done.activations.hidden[[row for _, _, row in sampled]]).cpu()
        for (session, step, _), row in zip(sampled, logits, strict=True):
            try:
                token = _choose(session, step, row)
            except FloatingPointError as error:  # one session's fault, not that of those beside it
                done.failed.append((session, InternalError(str(error))))
                continue
            result = StepResult(session=step.session, epoch=step.epoch, token=token)
            done.results.append((session, result))
    for session, step in work.steps:
        if step.kind == STEP_KIND_PREFILL and not step.sample and not step.rebuild:
            # The head paces a long prompt by what comes back of its chunks.
            result = StepResult(session=step.session, epoch=step.epoch, prefilled=True)
            done.results.append((session, result))
    _compute_outputs(model, work, done)
    return done


def _choose(session: ReplicaSession, step: Step, logits: torch.Tensor) -> Token:
    """The token after a step, from its logits, float32 `[vocab]`."""
    sampling = session.open.sampling
    if needs_history(sampling):
        session.history = session.history or History(session.open)
        session.history.add(step.token_ids)
    return choose(logits, sampling, step.position + step.tokens, session.history)


def _compute_outputs(model: Partition, work: Work, done: Computed) -> None:
    """The outputs that stateless sessions asked for."""
    samples: dict[int, tuple[ReplicaSession, list[Segment]]] = {}
    for (session, step), segment in zip(work.steps, work.batch.segments, strict=True):
        if step.kind == STEP_KIND_STATELESS:
            samples.setdefault(step.session, (session, []))[1].append(segment)
    for session, segments in samples.values():
        rows = done.activations
        if len(samples) > 1:
            rows = rows.rows([slice(s.start, s.start + s.rows) for s in segments])
        try:
            for index, name in enumerate(session.open.outputs):
                output = model.output(name, rows, [s.rows for s in segments])
                result = StepResult(
                    session=session.session, epoch=session.epoch, rows=output.shape[0], output_index=index
                )
                done.outputs.append((session, result, output))
        except StagemeshError as error:
            done.failed.append((session, error))


def received(
    model: Partition,
    frame: Frame,
    tensor: TensorView | None,
    session_of: Callable[[Step], ReplicaSession | None],
    network_us: int,
) -> Work | None:
    """The work of the steps of a frame that came in; None when none of their sessions can run here.

    Args:
        model: what they are for.
        frame: without its tensor.
        tensor: activations of its steps.
        session_of: the session of a step; None when it cannot run here.
        network_us: how long the frame was on its way.

    Raises:
        InternalError: tensor and steps do not fit.
    """
    if tensor is None:
        raise InternalError("a frame with steps has no tensor")
    sent = list(frame.steps)  # looking at the field makes new objects each time
    if any(step.rebuild for step in sent) and len(sent) > 1:
        raise InternalError("a step that builds a replica again is not alone in its frame")
    if len(sent) == 1:
        return _received_one(model, frame, tensor, sent[0], session_of, network_us)
    total = 0
    for step in sent:
        total += step.tokens
    sides = {side.name: from_message(side, model.device) for side in frame.sides} if frame.sides else {}
    given = model.check(total, Activations(from_view(tensor, model.device), sides))
    steps: list[tuple[ReplicaSession, Step]] = []
    rows: list[slice] = []
    at = 0
    whole = True
    for step in sent:
        session = session_of(step)
        if session is None:
            whole = False
        else:
            steps.append((session, step))
            rows.append(slice(at, at + step.tokens))
        at += step.tokens
    if not steps:
        return None
    batch = Batch(segments_of(steps), given=given if whole else given.rows(rows))
    alone = whole and not frame.closes and not frame.results
    return Work(steps, batch, frame.hops, network_us, frame if alone else None)


def _received_one(
    model: Partition,
    frame: Frame,
    tensor: TensorView,
    step: Step,
    session_of: Callable[[Step], ReplicaSession | None],
    network_us: int,
) -> Work | None:
    """The same for a frame of one step, which most are: its rows are all of the tensor."""
    sides = {side.name: from_message(side, model.device) for side in frame.sides} if frame.sides else {}
    tokens = step.tokens
    given = model.check(tokens, Activations(from_view(tensor, model.device), sides))
    session = session_of(step)
    if session is None:
        return None
    batch = Batch([Segment(0, tokens, step.position, session.kv)], given=given)
    alone = not frame.closes and not frame.results
    return Work([(session, step)], batch, frame.hops, network_us, frame if alone else None)


def next_hops(work: Work) -> Iterable[RouteHop]:
    """Where the pass's sessions go next, each once."""
    hops = {hop.replica_id: hop for session in work.sessions if (hop := session.next_hop) is not None}
    return hops.values()
