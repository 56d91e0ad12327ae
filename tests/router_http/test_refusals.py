import json
from typing import Any

import httpx
import openai
import openai.types.chat.completion_create_params
import openai.types.completion_create_params
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stagemesh.services.router.http.app import create_app

from stagemesh.errors import OutOfRange, PermissionDenied, ResourceExhausted, Unavailable

from .conftest import ScriptedCore

MESSAGES = [{"role": "user", "content": "hi"}]


def fault(response: httpx.Response, status: int, param: str | None, code: str = "invalid_argument") -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code), error
    if param is not None:
        assert error["message"].startswith(param)
    return str(error["message"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["x"] * 257}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True, "other": 1}}, "stream_options.other"),
        ({"model": 7}, "model"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 3, "prompt": ["x"] * 100}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 4}, "best_of"),
        ({"best_of": 4, "n": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"4294967296": 1}}, "logit_bias"),
        ({"logit_bias": [5]}, "logit_bias"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"user": 5}, "user"),
        ({"tempreture": 1}, "tempreture"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
async def test_completion_fields(
    http: httpx.AsyncClient, core: ScriptedCore, change: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": "demo", "prompt": "hi"} | change)
    fault(await http.post("/v1/completions", content=body), 400, param)
    assert not core.requests
    assert (await http.post("/v1/completions", json={"model": "demo", "prompt": "hi"})).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_completion_tokens"),
        ({"prompt": "hi"}, "prompt"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
        ({"\ud800": 1}, "body"),
    ],
)
async def test_chat_fields(
    http: httpx.AsyncClient, core: ScriptedCore, change: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": "demo", "messages": MESSAGES} | change)
    fault(await http.post("/v1/chat/completions", content=body), 400, param)
    assert not core.requests


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": ["a", "\udc00"]}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_embedding_fields(http: httpx.AsyncClient, change: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "demo", "input": "hi"} | change)
    fault(await http.post("/v1/embeddings", content=body), 400, param)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"model": "demo", "prompt"', "line 1 column 27 (byte 26)"),
        (b"", "line 1 column 1"),
        (b"\xff\xfe", "UTF-8 at byte 0"),
        (b"[1]", "JSON object"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "number too long"),
    ],
)
async def test_invalid_json_names_the_place(http: httpx.AsyncClient, content: bytes, says: str) -> None:
    response = await http.post("/v1/completions", content=content)
    assert says in fault(response, 400, "body")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    path=st.sampled_from(["completions", "chat/completions", "embeddings"]),
    name=st.sampled_from(["prompt", "messages", "input", "model", "stop", "stream_options", "n", "tools"]),
    value=_JSON,
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_sent_is_answered_and_not_a_fault_of_ours(path: str, name: str, value: Any) -> None:
    base = {"completions": {"prompt": "x"}, "embeddings": {"input": "x"}}.get(path, {"messages": MESSAGES})
    transport = httpx.ASGITransport(app=create_app(ScriptedCore()))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        body = json.dumps({"model": "demo"} | base | {name: value})
        response = await client.post(f"/v1/{path}", content=body)
    assert response.status_code in (200, 400, 404), response.text


async def test_the_cores_errors_keep_their_status_and_get_our_names(
    http: httpx.AsyncClient, core: ScriptedCore
) -> None:
    unknown = await http.post("/v1/completions", json={"model": "none", "prompt": "x"})
    fault(unknown, 404, "model", "not_found")
    core.fail(ResourceExhausted("the queue is full", retry_after_s=1.2))
    busy = await http.post("/v1/completions", json={"model": "demo", "prompt": "x", "stream": True})
    fault(busy, 429, None, "resource_exhausted")
    assert (busy.headers["retry-after"], busy.headers["retry-after-ms"]) == ("2", "1200")
    assert busy.headers["x-request-id"] == "made-up"
    core.fail(Unavailable("no live route", retry_after_s=0.1))
    gone = await http.post("/v1/chat/completions", json={"model": "demo", "messages": MESSAGES})
    fault(gone, 503, None, "unavailable")
    assert (gone.headers["retry-after"], gone.headers["retry-after-ms"]) == ("1", "100")
    core.fail(Unavailable("it broke"))
    gone = await http.post("/v1/completions", json={"model": "demo", "prompt": "x"})
    assert (gone.headers["retry-after"], gone.headers["retry-after-ms"]) == ("1", "1000"), "it says no more"
    core.fail(
        PermissionDenied(
            "x-stagemesh-priority: this API key allows low at most", field="x-stagemesh-priority"
        )
    )
    forbidden = await http.post("/v1/completions", json={"model": "demo", "prompt": "x"})
    fault(forbidden, 403, "x-stagemesh-priority", "permission_denied")
    assert "retry-after" not in forbidden.headers
    core.fail(RuntimeError("secret in a traceback"))
    broken = await http.post("/v1/completions", json={"model": "demo", "prompt": "x"})
    assert fault(broken, 500, None, "internal_error") == "internal error"
    assert core.running == 0


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("chat.messages[2].role", "messages[2].role"),
        ("tokens.ids", "prompt"),
        ("tokens[3]", "input[3]"),
        ("texts[0]", "input[0]"),
        ("max_tokens", "max_tokens"),
    ],
)
async def test_the_cores_field_names_become_the_bodys(
    http: httpx.AsyncClient, core: ScriptedCore, field: str, param: str
) -> None:
    core.fail(OutOfRange(f"{field}: is wrong", field=field))
    response = await http.post("/v1/embeddings", json={"model": "demo", "input": "x"})
    assert fault(response, 400, param, "out_of_range") == f"{param}: is wrong"


async def test_an_error_after_the_first_words_is_the_last_event(
    http: httpx.AsyncClient, core: ScriptedCore
) -> None:
    core.fail(Unavailable("replica demo-1-b went away"), after=3)
    response = await http.post("/v1/completions", json={"model": "demo", "prompt": "x", "stream": True})
    lines = [json.loads(line[6:]) for line in response.text.split("\n\n") if line]
    assert [line["choices"][0]["text"] for line in lines[:-1]] == ["Hello", " wörld"]
    assert lines[-1]["error"]["code"] == "unavailable"


async def test_one_of_several_failing_ends_the_others(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    core.fail(Unavailable("gone"), after=2)
    response = await http.post("/v1/completions", json={"model": "demo", "prompt": ["a"] * 5})
    fault(response, 503, None, "unavailable")
    assert core.running == 0


async def test_api_keys(http: httpx.AsyncClient, core: ScriptedCore) -> None:
    core.api_key = "k"
    refused = await http.get("/v1/models")
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert (await http.get("/v1/models", headers={"authorization": "Bearer k"})).status_code == 200
    assert (await http.get("/health")).status_code == 200


async def test_unknown_paths_and_methods_have_the_same_shape(http: httpx.AsyncClient) -> None:
    fault(await http.get("/v2/models"), 404, None, "not_found")
    wrong = await http.get("/v1/completions")
    fault(wrong, 405, None, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]


OPENAI: list[tuple[str, dict[str, Any], Any]] = [
    (
        "/v1/completions",
        {"prompt": "hi"},
        openai.types.completion_create_params.CompletionCreateParamsStreaming,
    ),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES},
        openai.types.chat.completion_create_params.CompletionCreateParamsStreaming,
    ),
    ("/v1/embeddings", {"input": "hi"}, openai.types.EmbeddingCreateParams),
]
UNSUPPORTED = {
    "audio": {"voice": "a"},
    "best_of": 3,
    "dimensions": 8,
    "echo": True,
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "1h"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "high",
    "response_format": {"type": "json_schema", "json_schema": {}},
    "service_tier": "flex",
    "store": True,
    "suffix": "end",
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "verbosity": "high",
    "web_search_options": {},
}
ASKS_NOTHING = {
    "audio": None,
    "best_of": 1,
    "dimensions": None,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "metadata": {},
    "modalities": ["text"],
    "moderation": None,
    "parallel_tool_calls": True,
    "prediction": None,
    "prompt_cache_key": None,
    "prompt_cache_options": None,
    "prompt_cache_retention": "in_memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": False,
    "suffix": "",
    "tool_choice": "none",
    "tools": [],
    "verbosity": "medium",
    "web_search_options": None,
}
SUPPORTED: dict[str, Any] = {
    "encoding_format": "float",
    "frequency_penalty": 1,
    "logit_bias": {"5": -100},
    "max_completion_tokens": 4,
    "max_tokens": 4,
    "n": 2,
    "presence_penalty": -1.5,
    "safety_identifier": "x",
    "seed": 1,
    "stop": ["x"],
    "stream_options": {"include_usage": True},
    "temperature": 0.5,
    "top_p": 0.5,
    "user": "u",
}


@pytest.mark.parametrize(("path", "body", "params"), OPENAI, ids=[path for path, _, _ in OPENAI])
async def test_every_parameter_of_the_official_client_is_served_or_refused_by_name(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], params: Any
) -> None:
    names = {
        name for base in (params, *params.__orig_bases__) for name in getattr(base, "__annotations__", {})
    }
    assert "model" in names
    for name in sorted(names - {"model", "stream", "messages", "prompt", "input"}):
        if name in UNSUPPORTED:
            message = fault(
                await http.post(path, json={"model": "demo", **body, name: UNSUPPORTED[name]}), 400, name
            )
            assert "not supported" in message
        if name in ASKS_NOTHING:
            value = ASKS_NOTHING[name]
        elif name in ("logprobs", "top_logprobs"):
            value = None if name == "top_logprobs" else (True if "chat" in path else 2)
        else:
            value = SUPPORTED[name]  # a new parameter of a new client: say here what becomes of it
        answer = await http.post(path, json={"model": "demo", **body, name: value})
        assert answer.status_code == 200, (name, answer.text)


async def test_best_of_as_many_as_n_asks_for_nothing(http: httpx.AsyncClient) -> None:
    body = {"model": "demo", "prompt": "hi", "n": 3, "best_of": 3}
    assert len((await http.post("/v1/completions", json=body)).json()["choices"]) == 3
