from pathlib import Path

from bench import cache_world, noop_model, noop_stage
from bench.cache_semantic import search
from bench.options import Options
from bench.result import Result


def test_the_answer_is_as_large_as_the_question() -> None:
    """The width is written down twice, because a benchmark must not import a service."""
    assert noop_stage.WIDTH == noop_model.WIDTH
    assert cache_world.IDS.nbytes == 4 * cache_world.ROWS * noop_model.WIDTH == 4096
    here = Path(cache_world.__file__).parent
    source = "".join((here / name).read_text() for name in ("noop_model.py", "cache_world.py", "cache.py"))
    begin = source.split("def run", 1)[0]
    assert "import stagemesh.services" not in begin
    assert "noop_stage import" not in begin


def test_the_search_finds_what_brute_force_finds() -> None:
    result = Result("cache", "")
    search(result, Options(quick=True, rounds=3))
    assert result.ratios["semantic_recall"].value >= 0.99
    assert result.ratios["semantic_ms"].value > 0
    assert [series.unit for series in result.series] == ["ms", "ms"]
