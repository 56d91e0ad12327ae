"""Both gRPC services of a router over real sockets, and an unmodified client of the Open Inference Protocol."""

import asyncio
import json
import os
import struct
import sys

import grpc
import pytest
from stagemesh.services.router.open_inference import OpenInferenceServicer
from stagemesh.services.router.servicer import InferenceServicer

from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer, create_channel
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.oip import open_inference_pb2_grpc as oip_grpc
from stagemesh.v1 import inference_pb2, inference_pb2_grpc


class Doors:
    def __init__(self, core):
        self.door = GrpcServer("127.0.0.1", 0)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(core), self.door.server)
        oip_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceServicer(core, "1.2.3"), self.door.server
        )

    async def __aenter__(self):
        self.address = f"127.0.0.1:{await self.door.start([])}"
        self.channel = create_channel(self.address)
        self.own = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.open = oip_grpc.GRPCInferenceServiceStub(self.channel)
        return self

    async def __aexit__(self, *_):
        await self.channel.close()
        await self.door.stop(0)


def ask(**extra):
    return inference_pb2.GenerateRequest(
        model="m", prompt="w1", **{"max_tokens": 3, "temperature": 0.0, **extra}
    )


async def test_generate_over_grpc_with_trailing_metadata(mesh):
    async with Doors(await mesh.start(cache="good")) as doors:
        call = doors.own.Generate(ask(), metadata=[("x-request-id", "r-1")])
        chunks = [chunk async for chunk in call]
        trailing = dict(await call.trailing_metadata())
        assert "".join(chunk.text for chunk in chunks).split() == ["w10", "w11", "w12"]
        assert (trailing["x-request-id"], trailing["stagemesh-cache"]) == ("r-1", "miss")
        hops = ",".join(f"{hop.stage}={hop.replica_id}" for hop in chunks[0].route)
        assert trailing["x-stagemesh-route"] == hops
        models = await doors.own.ListModels(inference_pb2.ListModelsRequest())
        assert [(each.spec.name, each.ready) for each in models.models] == [("m", True)]
        status = await doors.own.GetMeshStatus(inference_pb2.GetMeshStatusRequest())
        assert len(status.replicas) == 4


async def test_errors_carry_code_and_field(mesh):
    async with Doors(await mesh.start()) as doors:
        for request, code, field in (
            (ask(max_tokens=0), grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
            (ask(max_tokens=64), grpc.StatusCode.OUT_OF_RANGE, "max_tokens"),
            (inference_pb2.GenerateRequest(model="x", prompt="a"), grpc.StatusCode.NOT_FOUND, "model"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [chunk async for chunk in doors.own.Generate(request)]
            assert caught.value.code() == code
            assert from_rpc_error(caught.value).field == field


async def test_keys_are_asked_for(mesh, tmp_path):
    keys = tmp_path / "keys.yaml"
    keys.write_text("k1: one\n")
    async with Doors(await mesh.start(api_keys=keys)) as doors:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await doors.own.ListModels(inference_pb2.ListModelsRequest())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        call = doors.own.ListModels(
            inference_pb2.ListModelsRequest(), metadata=[("authorization", "Bearer k1")]
        )
        assert len((await call).models) == 1


async def test_the_policy_of_one_request(mesh):
    async with Doors(await mesh.start()) as doors:
        heads = []
        for _ in range(4):
            call = doors.own.Generate(ask(), metadata=[("x-stagemesh-policy", "round_robin")])
            chunks = [chunk async for chunk in call]
            heads.append(chunks[0].route[0].replica_id)
        assert heads in (["0a", "0b"] * 2, ["0b", "0a"] * 2)


def text_request(text, **parameters):
    request = oip.ModelInferRequest(model_name="m", id="q")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(text)) + text)
    for name, value in parameters.items():
        request.parameters[name].int64_param = value
    return request


async def test_open_inference_streams_text_and_survives_a_bad_request(mesh):
    async with Doors(await mesh.start()) as doors:

        async def requests():
            yield text_request(b"w1", max_tokens=0)
            yield text_request(b"w1", max_tokens=3, temperature=0)

        answers = [each async for each in doors.open.ModelStreamInfer(requests())]
        assert "max_tokens" in answers[0].error_message
        chunks = [each.infer_response for each in answers[1:]]
        text = b"".join(chunk.raw_output_contents[0][4:] for chunk in chunks).decode()
        assert text.split() == ["w10", "w11", "w12"]
        finals = [chunk.parameters["triton_final_response"].bool_param for chunk in chunks]
        assert finals == [False, False, True]
        whole = await doors.open.ModelInfer(text_request(b"w1", max_tokens=3))
        assert whole.raw_output_contents[0][4:].decode() == text
        assert (whole.id, whole.model_version) == ("q", "r1")


async def test_open_inference_versions(mesh):
    async with Doors(await mesh.start()) as doors:
        assert (await doors.open.ModelReady(oip.ModelReadyRequest(name="m", version="r1"))).ready
        assert not (await doors.open.ModelReady(oip.ModelReadyRequest(name="m", version="r0"))).ready
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await doors.open.ModelMetadata(oip.ModelMetadataRequest(name="m", version="r0"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# In a process of its own: it registers the same proto package as stagemesh.oip.
CLIENT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
ids = np.array([[1, 2, 3], [4, 5, 0]], dtype=np.int64)
mask = np.array([[1, 1, 1], [1, 1, 0]], dtype=np.int64)
inputs = [triton.InferInput("input_ids", [2, 3], "INT64"), triton.InferInput("attention_mask", [2, 3], "INT64")]
inputs[0].set_data_from_numpy(ids)
inputs[1].set_data_from_numpy(mask)
asked = [triton.InferRequestedOutput("sentence_embedding"), triton.InferRequestedOutput("last_hidden_state")]
tensors = client.infer("m", inputs, outputs=asked)
text = triton.InferInput("text_input", [2], "BYTES")
text.set_data_from_numpy(np.array([b"w1 w2", b"w3"], dtype=np.object_))
texts = client.infer("m", [text])
try:
    client.infer("m", [inputs[1]])
    error = ""
except triton.InferenceServerException as caught:
    error = str(caught)
metadata = client.get_model_metadata("m", as_json=True)
print(json.dumps({
    "ready": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("m")],
    "version": client.get_server_metadata(as_json=True)["version"],
    "inputs": [each["name"] for each in metadata["inputs"]],
    "sentence": tensors.as_numpy("sentence_embedding").tolist(),
    "hidden": list(tensors.as_numpy("last_hidden_state").shape),
    "texts": texts.as_numpy("sentence_embedding").tolist(),
    "error": error,
}))
"""


async def test_an_unmodified_client_of_the_open_inference_protocol(mesh):
    async with Doors(await mesh.start(task="embed")) as doors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            doors.address,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ""},
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()[-2000:]
    said = json.loads(out)
    assert said["ready"] == [True, True, True]
    assert said["version"] == "1.2.3"
    assert said["inputs"] == ["input_ids", "attention_mask", "token_type_ids", "text_input"]
    assert said["sentence"] == [[6.0] * 4, [9.0] * 4]
    assert said["hidden"] == [2, 3, 4]
    assert said["texts"] == [[3.0] * 4, [3.0] * 4]
    assert "input_ids is missing" in said["error"]
