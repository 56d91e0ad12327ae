"""Reranking and classification over HTTP, on the real core with a real tokenizer; only the stages are scripted."""

import json
import math

import httpx
import pytest
from stagemesh.services.router.http.app import create_app
from stagemesh.services.router.text.pairs import PairText
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from stagemesh.tensor import to_numpy
from stagemesh.v1.registry_pb2 import RowKind, TensorSpec

from .specs import model

CLS, SEP = 97, 98


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier's tokenizer: `[CLS] a [SEP] b [SEP]` with token types; 99 words."""
    folder = tmp_path_factory.mktemp("pairs")
    vocab = {f"w{i}": i for i in range(97)} | {"[CLS]": CLS, "[SEP]": SEP}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    made.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "good", "1": "bad"}}))
    return folder


def lists(labels, *, types=True):
    ids = [
        TensorSpec(name=name, dtypes=["I64", "I32"], shape=[-1, -1], optional=name != "input_ids")
        for name in ("input_ids", *(["token_type_ids"] if types else []))
    ]
    logits = TensorSpec(name="logits", dtypes=["F32"], shape=[-1, labels])
    return {"inputs": ids, "outputs": [logits], "rows": RowKind.ROW_KIND_TOKEN}


async def door(mesh, task, labels, **more):
    """A router before a model whose logits each stage's `score` makes of a sample's token ids."""
    core = await mesh.start(task=task, spec={**lists(labels), **more.pop("spec", {})}, **more)
    for stage in mesh.stages.values():
        stage.labels = labels
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(core)), base_url="http://router")


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


async def test_documents_are_ranked_as_pairs_with_token_types(mesh, checkpoint):
    async with await door(mesh, "rank", 1) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: float(ids[-2]) / 10  # the document's last word
        body = {"model": "m", "query": "w1 w2", "documents": ["w3", {"text": "w5 w30"}, "w4 w9"]}
        answer = await http.post("/v1/rerank", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert [each["index"] for each in said["results"]] == [1, 2, 0]
        assert said["results"][0] == {"index": 1, "relevance_score": pytest.approx(sigmoid(3.0))}
        assert said["results"][2]["relevance_score"] == pytest.approx(sigmoid(0.3))
        assert said["usage"] == {"prompt_tokens": 20, "total_tokens": 20}
        assert answer.headers["x-stagemesh-route"].startswith("0=0")
        few = await http.post("/v1/rerank", json={**body, "top_n": 2, "return_documents": True})
        assert [each["document"]["text"] for each in few.json()["results"]] == ["w5 w30", "w4 w9"]
    (first,) = [stage.forwarded[0] for stage in mesh.stages.values() if stage.forwarded][:1]
    ids, types = (to_numpy(each).tolist() for each in first.inputs)
    assert ids[:7] == [CLS, 1, 2, SEP, 3, SEP, CLS]
    assert types[:7] == [0, 0, 0, 0, 1, 1, 0]
    assert list(first.lengths) == [6, 7, 7]


async def test_a_ranker_that_says_identity_gives_its_logits(mesh, checkpoint, tmp_path):
    mesh.checkpoint = tmp_path
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    trained = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (tmp_path / "config.json").write_text(json.dumps({"sentence_transformers": trained}))
    async with await door(mesh, "rank", 1) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: float(ids[-2]) - 10
        answer = await http.post("/v1/rerank", json={"model": "m", "query": "w1", "documents": ["w3", "w40"]})
        assert [each["relevance_score"] for each in answer.json()["results"]] == [30.0, -7.0]


async def test_many_documents_keep_their_numbers(mesh, checkpoint):
    async with await door(mesh, "rank", 1) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: float(ids[-2]) / 50
        words = [(7 * i) % 97 for i in range(400)]
        body = {"model": "m", "query": "w1", "documents": [f"w{word}" for word in words]}
        results = (await http.post("/v1/rerank", json=body)).json()["results"]
        assert sorted(each["index"] for each in results) == list(range(400))
        assert [words[each["index"]] for each in results] == sorted(words, reverse=True)
        assert sum(len(stage.forwarded) for stage in mesh.stages.values()) > 8


async def test_classes_with_their_scores(mesh, checkpoint):
    async with await door(mesh, "classify", 2) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: [float(ids[1]) / 10, 1.0]
        one = (await http.post("/v1/classify", json={"model": "m", "input": "w30"})).json()
        assert one["data"][0]["label"] == "good"
        assert one["data"][0]["score"] == pytest.approx(sigmoid(2.0))
        assert [each["label"] for each in one["data"][0]["scores"]] == ["good", "bad"]
        assert sum(each["score"] for each in one["data"][0]["scores"]) == pytest.approx(1)
        two = (await http.post("/v1/classify", json={"model": "m", "input": ["w30", "w1 w2 w3"]})).json()
        assert [each["label"] for each in two["data"]] == ["good", "bad"]
        assert [each["index"] for each in two["data"]] == [0, 1]
        assert two["usage"]["total_tokens"] == 8


async def test_labels_of_the_spec_and_the_cache(mesh, checkpoint):
    named = {"labels": ["spam", "ham"]}
    async with await door(mesh, "classify", 2, cache="good", spec=named) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: [2.0, 1.0]
        body = {"model": "m", "input": "w30"}
        first = await http.post("/v1/classify", json=body)
        assert first.json()["data"][0]["label"] == "spam"
        await mesh.cache.stored.wait()
        second = await http.post("/v1/classify", json=body)
        assert (first.headers["x-stagemesh-cache"], second.headers["x-stagemesh-cache"]) == ("miss", "hit")
        assert first.json() == second.json()
        assert sum(len(stage.forwarded) for stage in mesh.stages.values()) == 1


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("rerank", {"query": ""}, "query"),
        ("rerank", {"documents": []}, "documents"),
        ("rerank", {"documents": ["a", ""]}, "documents[1]"),
        ("rerank", {"documents": ["a", {"text": 5}]}, "documents[1].text"),
        ("rerank", {"documents": ["a"] * 2049}, "documents"),
        ("rerank", {"top_n": 0}, "top_n"),
        ("rerank", {"max_chunks_per_doc": 2}, "max_chunks_per_doc"),
        ("rerank", {"model": "other"}, "model"),
        ("classify", {}, "model"),
    ],
)
async def test_faults_name_their_field(mesh, checkpoint, path, change, param):
    async with await door(mesh, "rank", 1) as http:
        body = {"model": "m", "query": "w1", "documents": ["a"]} if path == "rerank" else {"input": "a"}
        answer = await http.post(f"/v1/{path}", json={"model": "m", **body, **change})
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["param"] == param
        assert not any(stage.forwarded for stage in mesh.stages.values())


async def test_two_scores_for_a_document_are_a_fault_of_the_model(mesh, checkpoint):
    async with await door(mesh, "rank", 2) as http:
        for stage in mesh.stages.values():
            stage.score = lambda ids: [1.0, 2.0]
        answer = await http.post("/v1/rerank", json={"model": "m", "query": "w1", "documents": ["a"]})
        assert answer.status_code == 500
        nan = lambda ids: [math.nan]  # noqa: E731
        for stage in mesh.stages.values():
            stage.score = nan
        answer = await http.post("/v1/rerank", json={"model": "m", "query": "w1", "documents": ["b"]})
        assert (answer.status_code, "not a number" in answer.text) == (500, True)


def pair_text(checkpoint, **spec):
    given = model(task="rank", **{**lists(1), **spec})
    return PairText(given, AutoTokenizer.from_pretrained(checkpoint), {}, None)


def test_what_does_not_fit_is_cut_from_the_longer_text_and_keeps_its_form(checkpoint):
    pair = pair_text(checkpoint, context_length=10)
    columns = pair.encode(["w1 w2"], ["w3 " * 50])
    assert columns["input_ids"] == [[CLS, 1, 2, SEP, 3, 3, 3, 3, 3, SEP]]
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]
    assert pair.encode(["w1 " * 50], ["w3"])["input_ids"][0][-3:] == [SEP, 3, SEP]


def test_token_types_only_where_the_model_takes_them(checkpoint):
    assert list(pair_text(checkpoint, **lists(1, types=False)).encode(["w1"], ["w2"])) == ["input_ids"]


def test_as_a_bert_tokenizer_does_it_itself(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"])
    )
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    mine = PairText(model(task="rank", **lists(1)), tokenizer, {}, None).encode(["a b"], ["c a"])
    theirs = tokenizer("a b", "c a")
    assert mine == {name: [theirs[name]] for name in ("input_ids", "token_type_ids")}
