"""The search of the semantic cache alone: a nearest neighbour among 100,000 embeddings, beside brute force.

The embeddings are drawn, since no encoder can be assumed to be here: texts in topics of topics, on axes whose weights
fall off as those of sentence encoders do, all leaning one way. Half of the questions say again what an entry says (a
similarity of about 0.9), the other half are new, so that their nearest neighbour is just one of their topic.
"""

import time
from statistics import median

import numpy as np
import numpy.typing as npt

from bench.options import Options, say
from bench.paired import interleaved, paired_ratio
from bench.result import Bound, Result, Series
from services.cache.semantic.index import SemanticIndex

ENTRIES, QUICK_ENTRIES = 100_000, 2_000
DIMENSION = 384
QUESTIONS, QUICK_QUESTIONS = 50, 10
"""Of a round."""
ROUNDS = 20
PARTITION = "bench"
OURS, BRUTE = "the cache's index", "brute force, one matrix product"

Vectors = npt.NDArray[np.float32]


def search(result: Result, options: Options) -> None:
    """Time of a search and how often it finds what brute force finds."""
    count = QUICK_ENTRIES if options.quick else ENTRIES
    questions = QUICK_QUESTIONS if options.quick else QUESTIONS
    rng = np.random.default_rng(6)
    world = _World(rng)
    entries = world.texts(count)
    index = SemanticIndex()
    say(f"adding {count} embeddings")
    started = time.perf_counter()
    for number, vector in enumerate(entries):
        index.add(PARTITION, b"%d" % number, vector)
    added_us = (time.perf_counter() - started) / count * 1e6
    took: dict[str, list[float]] = {OURS: [], BRUTE: []}
    recalls: list[float] = []
    asked = entries[:0]
    best: list[bytes] = []
    for number, name in interleaved([BRUTE, OURS], options.times(ROUNDS) + 1):
        times = []
        if name == BRUTE:
            asked = _questions(world, entries, questions, rng)
            best = []
        right = 0
        for at, vector in enumerate(asked):
            started = time.perf_counter()
            if name == BRUTE:
                best.append(b"%d" % int(np.argmax(entries @ vector)))
            else:
                right += index.nearest(PARTITION, vector)[0].key == best[at]
            times.append(time.perf_counter() - started)
        if number:  # the first round warms up
            took[name].append(median(times) * 1e3)
            if name == OURS:
                recalls.append(right / questions)
    for name, values in took.items():
        result.series.append(
            Series(f"search over {count} embeddings of {DIMENSION}, p50", name, "ms", values)
        )
    result.ratio("semantic_ms", paired_ratio(took[OURS], [1.0] * len(recalls)), Bound(2.0, at_most=True))
    mean = sum(recalls) / len(recalls)  # of all questions: a round is too few to tell 0.99 from 0.98
    result.ratio("semantic_recall", paired_ratio([mean] * len(recalls), [1.0] * len(recalls)), Bound(0.99))
    result.notes.append(f"an embedding is added in {added_us:.0f} us; {index!r}")


class _World:
    """Draws embeddings [n, 384] of length 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.weights = ((np.arange(DIMENSION) + 10.0) ** -0.5).astype(np.float32)
        self._lean = self._draw(1)
        self._areas = self._draw(100)
        self._topics = 0.7 * self._areas[rng.integers(0, 100, 5_000)] + 0.7 * self._draw(5_000)
        turned, _ = np.linalg.qr(rng.normal(size=(DIMENSION, DIMENSION)))
        self._turn = turned.astype(np.float32)

    def texts(self, count: int) -> Vectors:
        """Any texts."""
        topic = self._topics[self._rng.integers(0, len(self._topics), count)]
        return self._finished(0.5 * self._lean + 0.7 * topic + 0.6 * self._draw(count))

    def noise(self, count: int) -> Vectors:
        """What saying the same in other words changes."""
        return _unit(self._draw(count) @ self._turn)

    def _draw(self, count: int) -> Vectors:
        drawn: Vectors = self._rng.normal(size=(count, DIMENSION)).astype(np.float32) * self.weights
        return drawn

    def _finished(self, drawn: Vectors) -> Vectors:
        return _unit(drawn @ self._turn)


def _questions(world: _World, entries: Vectors, count: int, rng: np.random.Generator) -> Vectors:
    again = entries[rng.integers(0, len(entries), count // 2)]
    again = again + 0.48 * world.noise(len(again))
    return _unit(np.concatenate([again, world.texts(count - len(again))]))


def _unit(vectors: npt.NDArray[np.float32]) -> Vectors:
    scaled: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled
