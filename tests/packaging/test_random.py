"""Any graph, cut anywhere, gives what it gives whole."""

import tempfile
from itertools import combinations, pairwise
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from stagemesh.packaging.cuts import Cost, choose
from stagemesh.packaging.package import package
from tests.packaging.test_models import agrees, load, outputs_of, serve

torch.set_num_threads(1)
WIDTH = 4


class Random(nn.Module):
    """Steps over a growing list of values, so that any value may be used by any later step."""

    def __init__(self, steps: list[tuple[str, int, int]], outputs: list[int]) -> None:
        super().__init__()
        self.steps, self.outputs = steps, outputs
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.table = nn.Embedding(8, WIDTH)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [x, self.table(ids)]
        for kind, a, b in self.steps:
            one, two = values[a % len(values)], values[b % len(values)]
            if kind == "linear":
                new = self.layers[b % 2](one)
            elif kind == "add":
                new = one + two
            elif kind == "write":
                new = one.clone()
                new.mul_(two.tanh())
                new[:, 0] = 1
            elif kind == "split":
                left, right = one.split(WIDTH // 2, dim=1)
                new = torch.cat([right, left.tanh()], dim=1)
            elif kind == "fold":
                new = one.reshape(-1).sin().reshape(x.shape[0], WIDTH)
            elif kind == "mask":
                new = torch.where(one > two, one, two.cos())
            else:
                new = self.table(one.abs().long().clamp(max=7)).sum(1)
            values.append(new)
        return tuple(values[index % len(values)] for index in self.outputs)


KINDS = ["linear", "add", "write", "split", "fold", "mask", "lookup"]
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=7
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)
@given(STEPS, st.lists(st.integers(0, 9), max_size=2), st.integers(1, 4), st.integers(0, 99))
def test_random_modules(
    steps: list[tuple[str, int, int]], outputs: list[int], stages: int, seed: int
) -> None:
    torch.manual_seed(seed)
    module = Random(steps, [*outputs, len(steps) + 1]).eval()

    def inputs(batch: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(batch, WIDTH), torch.randint(0, 8, (batch,))

    with tempfile.TemporaryDirectory() as place:
        manifest = package(module, inputs(3), Path(place) / "p")
        assert manifest.dynamic, manifest.fixed_because
        parts = load(Path(place) / "p", min(stages, manifest.layers))
        for batch in (1, 4):
            sent = inputs(batch)
            agrees(serve(parts, manifest, sent), outputs_of(module, sent))


COSTS = st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=1, max_size=12)


@given(COSTS, st.data())
def test_cuts_are_legal_and_the_best(raw: list[tuple[float, bool]], data: st.DataObject) -> None:
    costs = [Cost(seconds, heavy) for seconds, heavy in raw]
    crossing = data.draw(
        st.lists(st.one_of(st.none(), st.floats(0, 5)), min_size=len(costs), max_size=len(costs))
    )
    pieces = data.draw(st.integers(1, 4))
    found = choose(costs, crossing, pieces, 8)
    possible = [at for at in range(1, len(costs)) if crossing[at] is not None]

    def total(cuts: tuple[int, ...]) -> float:
        ends = [0, *cuts, len(costs)]
        return sum(
            (sum(cost.seconds for cost in costs[a:b]) + ((crossing[b] or 0.0) if b < len(costs) else 0.0))
            ** 2
            for a, b in pairwise(ends)
        )

    def all_heavy(cuts: tuple[int, ...]) -> bool:
        ends = [0, *cuts, len(costs)]
        return all(any(cost.heavy for cost in costs[a:b]) for a, b in pairwise(ends))

    ways = list(combinations(possible, pieces - 1))
    if not ways:
        assert found is None
        return
    assert found is not None
    assert tuple(found) in ways
    best = [way for way in ways if all_heavy(way)] or ways
    assert total(tuple(found)) <= min(map(total, best)) * (1 + 1e-9) + 1e-9


def test_many_operations_are_cut_in_time() -> None:
    costs = [Cost(1.0, True)] * 5000
    cuts = choose(costs, [0.0 if at % 7 == 0 else 1.0 for at in range(5000)], None, 8)
    assert cuts is not None
    assert len(cuts) == 7
    assert all(at % 7 == 0 for at in cuts)
    assert all(abs(b - a - 625) < 50 for a, b in zip([0, *cuts], [*cuts, 5000], strict=True))
