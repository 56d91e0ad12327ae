"""Decode steps of several heads computed as one pass give what each of them gives by itself."""

import asyncio
import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.context import Context
from stagemesh.services.stage.partition.causal import CausalPartition
from stagemesh.services.stage.partition.interface import Activations, Batch
from stagemesh.services.stage.partition.kv import KVPool
from stagemesh.services.stage.partition.load import load_partition
from stagemesh.services.stage.partition.ragged import Segment
from stagemesh.services.stage.passes import Computed, Work, compute, segments_of
from stagemesh.services.stage.session import ReplicaSession
from stagemesh.services.stage.together import DecodePass

from stagemesh.checkpoint import inspect
from stagemesh.v1.stage_pb2 import Sampling, Step, StepKind, StepOpen
from tests.stage.two_stages import route_of, settled

HIDDEN = 64


@pytest.fixture(scope="module")
def parts(llama: Path) -> list[CausalPartition]:
    found = inspect(llama)
    return [
        load_partition(llama, found, task="generate", first=a, end=b)
        for a, b in itertools.pairwise([0, 3, 6, 8])
    ]


class Sessions:
    """Some on one partition, with what they have been told so far."""

    def __init__(self, model: CausalPartition, lengths: list[int], sampling: Sampling) -> None:
        self.model = model
        pool = KVPool(10**8, model.kv_layout)
        self.all = []
        for number, length in enumerate(lengths):
            opening = StepOpen(sampling=sampling)
            session = ReplicaSession(number, 1, opening, 1, 1, Context(), 0.0, kv=pool.reserve(length + 8))
            rows = torch.randn(length, hidden_of(model), generator=torch.Generator().manual_seed(number))
            model.forward(Batch([Segment(0, length, 0, session.kv)], given=Activations(rows)))
            session.position = length
            self.all.append(session)

    def work(self, numbers: list[int]) -> Work:
        """Their next decode steps, in one pass."""
        steps = []
        for number in numbers:
            session = self.all[number]
            kind = StepKind.STEP_KIND_DECODE
            step = Step(
                session=number,
                epoch=1,
                kind=kind,
                position=session.position,
                tokens=1,
                sample=self.model.is_last,
            )
            steps.append((session, step))
        rows = torch.stack([torch.randn(hidden_of(self.model), generator=seeded(n)) for n in numbers])
        return Work(steps, Batch(segments_of(steps), given=Activations(rows)), [])


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + number)


def hidden_of(model: CausalPartition) -> int:
    return model.probe([Segment(0, 1, 0, None)]).given.hidden.shape[1]


def together(model: CausalPartition, works: list[Work]) -> list[Computed]:
    passes = [DecodePass.of(model, work) for work in works]
    assert all(passes)
    run, (rows, _) = passes[0].joined(passes[1:])
    assert rows == sum(len(work.steps) for work in works).bit_length()
    results = run()
    assert all(isinstance(result, Computed) for result in results), results
    return results


@settings(max_examples=40, deadline=None)
@given(
    stage=st.sampled_from([1, 2]),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=9),
    cuts=st.sets(st.integers(1, 8)),
    temperature=st.sampled_from([0.0, 0.7]),
)
def test_they_give_what_each_gives_by_itself(
    parts: list[CausalPartition], stage: int, lengths: list[int], cuts: set[int], temperature: float
) -> None:
    model = parts[stage]
    sampling = Sampling(temperature=temperature, seed=5)
    groups = [
        list(range(a, b))
        for a, b in itertools.pairwise([0, *sorted(cut for cut in cuts if cut < len(lengths)), len(lengths)])
    ]
    alone, joint = Sessions(model, lengths, sampling), Sessions(model, lengths, sampling)
    for _ in range(2):
        wanted = [compute(model, alone.work(group)) for group in groups]
        got = together(model, [joint.work(group) for group in groups])
        for one, other, group in zip(wanted, got, groups, strict=True):
            torch.testing.assert_close(other.activations.hidden, one.activations.hidden, rtol=1e-4, atol=1e-5)
            sampled = [result.token.id for _, result in other.results]
            assert sampled == [result.token.id for _, result in one.results]
            assert [session.session for session, _ in other.results] == (group if stage == 2 else [])
        for session in [*alone.all, *joint.all]:
            session.position += 1


def test_of_a_step_that_fails_only_its_own_pass_does(parts: list[CausalPartition]) -> None:
    sessions = Sessions(parts[1], [5, 5, 5], Sampling())
    works = [sessions.work([number]) for number in range(3)]
    wanted = compute(parts[1], works[0]).activations.hidden
    works[1].batch.given = Activations(torch.zeros(1, 3))  # not what a neighbour gives
    run, _ = DecodePass(parts[1], works[0]).joined([DecodePass(parts[1], work) for work in works[1:]])
    first, failed, last = run()
    torch.testing.assert_close(first.activations.hidden, wanted, rtol=1e-4, atol=1e-5)
    assert isinstance(failed, RuntimeError)
    assert isinstance(last, Computed)


def test_who_may_not_be_joined(parts: list[CausalPartition]) -> None:
    def of(model: CausalPartition, sampling: Sampling, **more: object) -> DecodePass | None:
        work = Sessions(model, [5], sampling).work([0])
        for name, value in more.items():
            setattr(work.steps[0][1], name, value)
        return DecodePass.of(model, work)

    plain = Sampling()
    assert of(parts[1], plain) is not None
    assert of(parts[2], plain) is not None
    assert of(parts[1], plain, kind=StepKind.STEP_KIND_PREFILL) is None
    assert of(parts[1], plain, tokens=2) is None
    # What was generated is counted on the last stage, and a pass may be computed a second time.
    counting = Sampling(frequency_penalty=1.0)
    assert of(parts[1], counting) is not None
    assert of(parts[2], counting) is None
    steps = Sessions(parts[1], [5], plain).work([0]).steps
    steps[0][0].kv = None
    stateless = Work(steps, Batch(segments_of(steps), given=Activations(torch.zeros(1, HIDDEN))), [])
    assert DecodePass.of(parts[1], stateless) is None
    first = Work(steps, Batch(segments_of(steps), inputs={"input_ids": torch.tensor([1])}), [])
    assert DecodePass.of(parts[0], first) is None
    one_by_one = SimpleNamespace(ragged=False, is_last=False)
    assert DecodePass.of(one_by_one, Sessions(parts[1], [5], plain).work([0])) is None


@pytest.mark.asyncio
async def test_what_waits_at_a_stage_goes_together_and_tokens_are_the_same(llama: Path) -> None:
    prompts = [list(range(3 + n, 9 + 2 * n)) for n in range(6)]
    async with route_of(llama) as route:
        wanted = [
            await route.generate(prompt, 24, session=number) for number, prompt in enumerate(prompts, 1)
        ]
        engine = route.replicas[1].engine
        assert engine.joined == 0

        async def held_up() -> None:
            while True:
                await engine.run(lambda: time.sleep(0.01))

        busy = asyncio.create_task(held_up())
        got = await asyncio.gather(
            *(route.generate(prompt, 24, session=10 + number) for number, prompt in enumerate(prompts))
        )
        busy.cancel()
        assert list(got) == wanted
        await settled(route)
        assert engine.joined > 3
