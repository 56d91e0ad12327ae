"""Every kind of bad input gets its error, naming the field, and the mesh lives on."""

import math
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from stagemesh import AsyncClient
from stagemesh.errors import InvalidArgument, NotFound, OutOfRange, StagemeshError
from stagemesh.local.mesh import LocalMesh
from stagemesh.v1 import inference_pb2, inference_pb2_grpc
from stagemesh.v1.tensor_pb2 import Tensor

pytestmark = [pytest.mark.mesh, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize(
    ("arguments", "kind", "field"),
    [
        ({"model": "nope", "prompt": "x"}, NotFound, "model"),
        ({"model": "llama", "prompt": ""}, InvalidArgument, "prompt"),
        ({"model": "llama", "token_ids": []}, InvalidArgument, "tokens"),
        ({"model": "llama", "token_ids": [512]}, InvalidArgument, "tokens"),
        ({"model": "llama", "prompt": "x" * 600}, OutOfRange, "prompt"),
        ({"model": "llama", "prompt": "x", "max_tokens": 0}, InvalidArgument, "max_tokens"),
        ({"model": "llama", "prompt": "x", "max_tokens": -3}, InvalidArgument, "max_tokens"),
        ({"model": "llama", "prompt": "x", "temperature": math.nan}, InvalidArgument, "temperature"),
        ({"model": "llama", "prompt": "x", "top_p": 1.5}, InvalidArgument, "top_p"),
        ({"model": "minilm-2", "prompt": "x"}, StagemeshError, "model"),
    ],
)
async def test_generation(
    client: AsyncClient, arguments: dict, kind: type[StagemeshError], field: str
) -> None:
    arguments = {"max_tokens": 4, **arguments}
    with pytest.raises(kind) as caught:
        await client.generate(**arguments)
    assert caught.value.field.startswith(field), caught.value.field
    good = await client.generate("llama", "x", max_tokens=2, temperature=0)
    assert good.usage.completion_tokens >= 1


IDS = np.ones((1, 4), dtype=np.int64)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"input_ids": IDS.astype(np.float32)}, "inputs[0].dtype"),
        ({"input_ids": IDS[0]}, "inputs[0].shape"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :2]}, "inputs[1].shape"),
        ({"input_ids": IDS, "attention_mask": IDS * 2}, "inputs[1].data"),
        ({"input_ids": IDS * 100_000}, "inputs[0].data"),
        ({"input_ids": IDS * -1}, "inputs[0].data"),
        ({"input_ids": IDS, "pixels": IDS}, "inputs[1].name"),
        ({"attention_mask": IDS}, "inputs"),
    ],
)
async def test_tensors(client: AsyncClient, inputs: dict[str, np.ndarray], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await client.infer("minilm-2", inputs)
    assert caught.value.field == field, caught.value.message


async def test_a_tensor_whose_bytes_do_not_fit_its_shape(mesh: LocalMesh) -> None:
    import grpc

    from stagemesh.grpc_errors import from_rpc_error

    async with grpc.aio.insecure_channel(mesh.grpc_address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for shape, data in (([1, 4], b"1234"), ([2**40, 2**40], b""), ([1, -1 % 2**64], b"")):
            tensor = Tensor(name="input_ids", dtype="I64", shape=shape, data=data)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(inference_pb2.InferRequest(model="minilm-2", inputs=[tensor]), timeout=10)
            error = from_rpc_error(caught.value)
            assert isinstance(error, InvalidArgument)
            assert error.field.startswith("inputs[0].")


async def test_http_bodies(mesh: LocalMesh) -> None:
    async with httpx.AsyncClient(base_url=f"http://{mesh.http_address}", timeout=30) as http:
        bad_json = await http.post("/v1/completions", content=b'{"model": ')
        assert bad_json.status_code == 400
        assert "error" in bad_json.json()

        async def gigabyte() -> AsyncIterator[bytes]:
            for _ in range(1024):
                yield b"x" * 2**20

        huge = await http.post("/v1/completions", content=gigabyte())
        assert huge.status_code == 413
        assert "error" in huge.json()
        unknown = await http.post("/v1/completions", json={"model": "nope", "prompt": "x"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["param"] == "model"
        odd = await http.post("/v1/completions", json={"model": "llama", "prompt": "x", "wheels": 4})
        assert odd.status_code == 400
        assert "wheels" in odd.text
        good = await http.post("/v1/completions", json={"model": "llama", "prompt": "x", "max_tokens": 2})
        assert good.status_code == 200
