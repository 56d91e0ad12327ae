"""The HTTP application on the real core: that the two fit together."""

import json

import httpx
from stagemesh.services.router.http.app import create_app


def client(core):
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(core)), base_url="http://router")


async def test_a_completion_whole_and_streamed(mesh):
    core = await mesh.start(cache="good")
    body = {"model": "m", "prompt": "w1 w2", "max_tokens": 3, "temperature": 0}
    async with client(core) as http:
        whole = await http.post("/v1/completions", json=body, headers={"x-request-id": "r-1"})
        assert whole.status_code == 200, whole.text
        assert whole.json()["choices"][0]["text"].split() == ["w10", "w11", "w12"]
        assert whole.json()["usage"]["completion_tokens"] == 3
        assert whole.headers["x-stagemesh-cache"] == "miss"
        assert whole.headers["x-request-id"] == "r-1"
        assert whole.headers["x-stagemesh-route"].startswith("0=0")
        await mesh.cache.stored.wait()
        streamed = await http.post("/v1/completions", json={**body, "stream": True})
        assert streamed.headers["x-stagemesh-cache"] == "hit"
        events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
        assert text == whole.json()["choices"][0]["text"]
        scored = await http.post("/v1/completions", json={**body, "logprobs": 1})
        assert len(scored.json()["choices"][0]["logprobs"]["tokens"]) == 3


async def test_errors_and_metrics(mesh):
    core = await mesh.start()
    async with client(core) as http:
        unknown = await http.post("/v1/completions", json={"model": "x", "prompt": "a"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["param"] == "model"
        bad = await http.post("/v1/completions", json={"model": "m", "prompt": "w1", "max_tokens": 0})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "max_tokens")
        page = (await http.get("/metrics")).text
        assert 'stagemesh_requests_total{code="NOT_FOUND",model="unknown"}' in page
        assert "stagemesh_sessions_active 0.0" in page


async def test_embeddings(mesh):
    core = await mesh.start(task="embed")
    async with client(core) as http:
        answer = await http.post("/v1/embeddings", json={"model": "m", "input": ["w1 w2", "w3"]})
        assert [row["embedding"] for row in answer.json()["data"]] == [[3.0] * 4, [3.0] * 4]
