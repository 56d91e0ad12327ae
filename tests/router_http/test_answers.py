import base64
import json

import httpx
import numpy as np
import pytest

from stagemesh.v1.inference_pb2 import CacheStatus

from .conftest import ScriptedCore

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


def events(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_completion(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    response = await http.post(
        "/v1/completions", json={"model": "demo", "prompt": "say"}, headers={"x-request-id": "r-1"}
    )
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "text_completion"
    assert body["id"] == "cmpl-r-1"
    assert body["choices"] == [
        {"index": 0, "text": "Hello wörld 😀", "logprobs": None, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert response.headers["x-request-id"] == "r-1"
    assert response.headers["x-stagemesh-cache"] == "miss"
    assert response.headers["x-stagemesh-route"] == "0=demo-0-a,1=demo-1-b"
    assert core.recorded == [("/v1/completions", 200)]
    assert core.requests[0].prompt == "say"
    assert core.requests[0].max_tokens == 16
    assert core.running == 0


async def test_every_setting_reaches_the_core(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    body = {
        "model": "demo",
        "prompt": [5, 6, 7],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 4,
        "min_p": 0.125,
        "seed": -1,
        "stop": ["a", "b"],
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 2,
        "user": "someone",
        "n": 1,
        "echo": False,
        "suffix": None,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "stream": False,
    }
    response = await http.post("/v1/completions", json=body, headers={"cache-control": "no-store"})
    assert response.status_code == 200, response.text
    (request,) = core.requests
    assert list(request.tokens.ids) == [5, 6, 7]
    assert (request.max_tokens, request.temperature, request.top_p) == (9, 0.5, 0.25)
    assert (request.top_k, request.min_p, request.seed) == (4, 0.125, 2**64 - 1)
    assert (list(request.stop), list(request.stop_token_ids)) == (["a", "b"], [2])
    assert (request.ignore_eos, request.logprobs) == (True, 2)
    assert request.cache_no_lookup
    assert request.cache_no_store


async def test_unset_settings_stay_unset(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    await http.post("/v1/chat/completions", json=CHAT)
    (request,) = core.requests
    for name in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs"):
        assert not request.HasField(name), name


async def test_several_prompts_are_answered_in_order(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    prompts = [f"p{i}" for i in range(40)]
    response = await http.post("/v1/completions", json={"model": "demo", "prompt": prompts})
    body = response.json()
    assert [choice["index"] for choice in body["choices"]] == list(range(40))
    assert all(choice["text"] == "Hello wörld 😀" for choice in body["choices"])
    assert body["usage"]["total_tokens"] == 240
    assert sorted(request.prompt for request in core.requests) == sorted(prompts)
    lists = await http.post("/v1/completions", json={"model": "demo", "prompt": [[1, 2], [3]]})
    assert len(lists.json()["choices"]) == 2


async def test_completion_stream(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    core.cache = CacheStatus.CACHE_STATUS_HIT
    response = await http.post(
        "/v1/completions",
        json={
            "model": "demo",
            "prompt": ["a", "b"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    documents = events(response)
    for index in (0, 1):
        mine = [d["choices"][0] for d in documents if d["choices"] and d["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == "Hello wörld 😀"
        assert [c["finish_reason"] for c in mine] == [None, None, None, "stop"]
    assert documents[-1]["choices"] == []
    assert documents[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    assert all(d["usage"] is None for d in documents[:-1])
    assert response.headers["x-stagemesh-cache"] == "hit"
    assert response.headers["x-stagemesh-route"].startswith("0=")
    assert response.headers["x-request-id"] == "made-up"


async def test_chat_and_its_stream(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None},
        {"role": "user", "content": parts},
    ]
    body = {"model": "demo", "messages": messages, "max_completion_tokens": 7}
    response = await http.post("/v1/chat/completions", json=body)
    choice = response.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello wörld 😀", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert [(m.role, m.content) for m in core.requests[0].chat.messages] == [
        ("system", "be kind"),
        ("assistant", "yes"),
        ("user", "one\ntwo"),
    ]
    assert core.requests[0].max_tokens == 7
    documents = events(await http.post("/v1/chat/completions", json=body | {"stream": True}))
    assert documents[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(d["choices"][0]["delta"].get("content", "") for d in documents) == "Hello wörld 😀"
    assert documents[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in document for document in documents)


async def test_logprobs_in_both_shapes(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    text = await core.text("demo", core.context({}))
    response = await http.post("/v1/completions", json={"model": "demo", "prompt": "x", "logprobs": 1})
    shape = response.json()["choices"][0]["logprobs"]
    assert shape["tokens"] == [text.token_text(token) for token in (10, 11, 12)]
    assert shape["token_logprobs"] == [-0.5, -1.0, -1.5]
    assert shape["top_logprobs"][0] == {text.token_text(20): -2.0}
    assert shape["text_offset"] == [0, len(shape["tokens"][0]), len(shape["tokens"][0] + shape["tokens"][1])]
    response = await http.post("/v1/chat/completions", json=CHAT | {"logprobs": True, "top_logprobs": 1})
    content = response.json()["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [-0.5, -1.0, -1.5]
    assert content[0]["top_logprobs"][0]["logprob"] == -2.0
    assert core.requests[-1].logprobs == 1


@pytest.mark.parametrize(("value", "count"), [("a", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2, 3]], 2)])
async def test_embeddings(http: httpx.AsyncClient, core: ScriptedCore, value: object, count: int) -> None:
    response = await http.post("/v1/embeddings", json={"model": "demo", "input": value})
    body = response.json()
    rows = [item["embedding"] for item in body["data"]]
    expected = np.arange(count * 4, dtype=np.float32).reshape(count, 4) / 3
    np.testing.assert_array_equal(np.array(rows, dtype=np.float32), expected)
    assert [item["index"] for item in body["data"]] == list(range(count))
    assert body["usage"] == {"prompt_tokens": 5 * count, "total_tokens": 5 * count}
    assert response.headers["x-stagemesh-cache"] == "hit"
    encoded = await http.post(
        "/v1/embeddings", json={"model": "demo", "input": value, "encoding_format": "base64"}
    )
    raw = b"".join(base64.b64decode(item["embedding"]) for item in encoded.json()["data"])
    assert raw == expected.tobytes()


async def test_models_and_health(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"][0]["id"] == "demo"
    assert listed["data"][0]["created"] == 1_700_000_000
    assert (await http.get("/v1/models/demo")).json() == listed["data"][0]
    missing = await http.get("/v1/models/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["param"] == "model"
    assert (await http.get("/health")).status_code == 200
    core.ready = False
    assert (await http.get("/health")).status_code == 503
    core.deployed = False
    assert (await http.get("/health")).status_code == 200
    core.draining = True
    draining = await http.get("/health")
    assert draining.status_code == 503
    assert draining.json()["status"] == "draining"
    assert draining.headers["connection"] == "close"


async def test_metrics(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    response = await http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "process_" in response.text or "python_info" in response.text
    await http.get("/nowhere")
    assert core.recorded == [("/metrics", 200), ("other", 404)]
