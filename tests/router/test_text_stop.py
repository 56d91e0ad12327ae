import itertools

from hypothesis import example, given
from hypothesis import strategies as st
from stagemesh.services.router.text.stop import StopStrings

TEXT = st.text(alphabet="abc", max_size=24)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read the whole text letter by letter until a stop string is complete."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def run(chunks: list[str], stops: list[str]) -> tuple[str, bool, str]:
    finder = StopStrings(stops)
    out = ""
    for chunk in chunks:
        emit, stopped = finder.push(chunk)
        out += emit
        if stopped:
            assert finder.push("more") == ("", True)
            assert finder.flush() == ""
            return out, True, out
    before_flush = out
    return out + finder.flush(), False, before_flush


@given(text=TEXT, stops=STOPS, cuts=st.sets(st.integers(0, 24)))
@example(text="abcabd", stops=["abd"], cuts={1, 2, 3, 4, 5})
@example(text="aabcx", stops=["abcd", "bc"], cuts={2, 3})
def test_any_chunking_gives_what_the_whole_text_gives(text: str, stops: list[str], cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    chunks = [text[a:b] for a, b in itertools.pairwise(edges)]
    out, stopped, _ = run(chunks, stops)
    assert (out, stopped) == naive(text, stops)


@given(text=TEXT, stops=STOPS)
def test_only_a_possible_start_is_held_back(text: str, stops: list[str]) -> None:
    out, stopped, before_flush = run(list(text), stops)
    if not stopped:
        held = out[len(before_flush) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_no_stops_passes_everything_at_once() -> None:
    finder = StopStrings([])
    assert finder.push("anything") == ("anything", False)
    assert StopStrings(["", ""]).push("x") == ("x", False)
