"""What a caller says of the cache, at every door: HTTP headers, gRPC metadata, the message, Open Inference."""

import asyncio

import grpc
import pytest

from stagemesh.grpc_errors import from_rpc_error
from stagemesh.v1.inference_pb2 import CacheControl, CacheReplay

from .test_grpc_doors import Doors, ask, text_request
from .test_http_door import client

BODY = {"model": "m", "prompt": "w1 w2", "max_tokens": 3, "temperature": 0}


async def test_headers_at_the_http_door(mesh):
    core = await mesh.start(cache="good")

    async def status(headers, path="/v1/completions", body=BODY):
        answered = await http.post(path, json=body, headers=headers)
        assert answered.status_code == 200, answered.text
        await asyncio.gather(*core._cache._stores)
        return answered.headers["x-stagemesh-cache"]

    async with client(core) as http:
        assert await status({"cache-control": "no-store"}) == "bypass"
        assert await status({"cache-control": "no-cache"}) == "bypass"
        assert await status({}) == "hit"
        assert await status({"cache-control": "namespace=a"}) == "miss"
        assert await status({"x-stagemesh-cache-namespace": "a", "x-stagemesh-cache-ttl": "5"}) == "hit"
        sampled = {"x-stagemesh-cache-sampled": "true"}
        warm = BODY | {"temperature": 1}
        assert [await status(sampled, body=warm) for _ in range(2)] == ["miss", "hit"]
        streamed = await http.post(
            "/v1/completions", json=BODY | {"stream": True}, headers={"x-stagemesh-cache-replay": "whole"}
        )
        assert sum("w10" in line for line in streamed.text.splitlines()) == 1
        assert "w10 w11 w12" in streamed.text
        for headers, field in (
            ({"cache-control": "no-chache"}, "cache-control"),
            ({"x-stagemesh-cache-colour": "red"}, "x-stagemesh-cache-colour"),
        ):
            refused = await http.post("/v1/completions", json=BODY, headers=headers)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


async def test_metadata_and_the_message_at_the_grpc_doors(mesh):
    core = await mesh.start(cache="good")
    async with Doors(core) as doors:

        async def status(metadata=(), **control):
            request = ask()
            if control:
                request.cache_control.CopyFrom(CacheControl(**control))
            call = doors.own.Generate(request, metadata=metadata)
            chunks = [chunk async for chunk in call]
            await asyncio.gather(*core._cache._stores)
            return dict(await call.trailing_metadata())["stagemesh-cache"], len(chunks)

        assert await status() == ("miss", 3)
        assert await status(namespace="n") == ("miss", 3)
        assert await status([("x-stagemesh-cache-namespace", "n")]) == ("hit", 3)
        assert await status(replay=CacheReplay.CACHE_REPLAY_WHOLE) == ("hit", 1)
        assert await status([("cache-control", "no-cache")]) == ("bypass", 3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(ttl_s=0)
        assert from_rpc_error(caught.value).field == "cache_control.ttl_s"
        text = text_request(b"w1", max_tokens=3, temperature=0)
        for metadata, expected in (((), "hit"), ([("x-stagemesh-cache-namespace", "o")], "miss")):
            call = doors.open.ModelInfer(text, metadata=metadata)
            await call
            assert dict(await call.trailing_metadata())["stagemesh-cache"] == expected
        with pytest.raises(grpc.aio.AioRpcError, match="colour"):
            await status([("x-stagemesh-cache-colour", "red")])
