"""Both gRPC services of a router over real sockets, and an unmodified client of the Open Inference Protocol."""

import asyncio
import json
import os
import struct
import sys

import grpc
import numpy as np
import pytest
from stagemesh.services.router.oip.servicer import OpenInferenceServicer
from stagemesh.services.router.servicer import InferenceServicer

from stagemesh.grpc_errors import from_rpc_error
from stagemesh.grpc_server import GrpcServer, create_channel
from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.oip import open_inference_pb2_grpc as oip_grpc
from stagemesh.tensor import from_numpy
from stagemesh.v1 import inference_pb2, inference_pb2_grpc
from stagemesh.v1.registry_pb2 import RowKind, TensorSpec


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


async def test_a_tensor_answer_says_in_its_message_what_others_say_in_trailing_metadata(mesh):
    ids = from_numpy("input_ids", np.array([[1, 2]]))
    async with Doors(await mesh.start(task="embed")) as doors:
        for call in (
            doors.own.Infer(inference_pb2.InferRequest(model="m", inputs=[ids]), metadata=[("x-request-id", "r-1")]),
            doors.own.Embed(inference_pb2.EmbedRequest(model="m", texts=["w1"]), metadata=[("x-request-id", "r-1")]),
        ):  # fmt: skip
            answer = await call
            assert (answer.request_id, len(answer.route)) == ("r-1", 2)
            assert answer.cache == inference_pb2.CACHE_STATUS_BYPASS
            assert not await call.trailing_metadata()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await doors.own.Infer(inference_pb2.InferRequest(model="m"), metadata=[("x-request-id", "r-2")])
        assert dict(caught.value.trailing_metadata())["x-request-id"] == "r-2"


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


async def run_client(script, address):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        address,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ""},
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()[-2000:]
    return json.loads(out)


async def test_an_unmodified_client_of_the_open_inference_protocol(mesh):
    async with Doors(await mesh.start(task="embed")) as doors:
        said = await run_client(CLIENT, doors.address)
    assert said["ready"] == [True, True, True]
    assert said["version"] == "1.2.3"
    assert said["inputs"] == ["input_ids", "attention_mask", "token_type_ids", "text_input"]
    assert said["sentence"] == [[6.0] * 4, [9.0] * 4]
    assert said["hidden"] == [2, 3, 4]
    assert said["texts"] == [[3.0] * 4, [3.0] * 4]
    assert "input_ids is missing" in said["error"]


# Tensors of an exported model with two inputs and two outputs, of several ranks and dtypes.
TENSORS = """
import json, sys, queue
import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
rng = np.random.default_rng(0)
def given(name, array, datatype):
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made
image = rng.integers(0, 255, (200, 3, 4, 5)).astype(np.uint8)
brain = np.array([[1.0, -2.5]] * 200, ml_dtypes.bfloat16)
inputs = [given("image", image, "UINT8"), given("brain", brain, "BF16")]
whole = client.infer("m", inputs)
one = client.infer("m", inputs, outputs=[triton.InferRequestedOutput("image_out")])
errors = []
for asked, parameters in (
    ([triton.InferRequestedOutput("image_out", class_count=3)], None),
    (None, {"beams": 3}),
):
    try:
        client.infer("m", inputs, outputs=asked, parameters=parameters)
    except triton.InferenceServerException as caught:
        errors.append(str(caught))
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer("m", inputs[:1])
client.async_stream_infer("m", inputs)
first, second = answers.get(timeout=20), answers.get(timeout=20)
client.stop_stream()
metadata = client.get_model_metadata("m", as_json=True)
print(json.dumps({
    "image": bool((whole.as_numpy("image_out") == image).all()),
    "brain": whole.as_numpy("brain_out").tolist() == brain.tolist(),
    "one": [each.name for each in one.get_response().outputs],
    "errors": errors,
    "stream": [str(first[1]), bool((second[0].as_numpy("image_out") == image).all())],
    "inputs": metadata["inputs"],
    "outputs": metadata["outputs"],
}))
"""


async def test_an_unmodified_client_sends_tensors_of_any_rank(mesh):
    image = TensorSpec(name="image", dtypes=["U8"], shape=[-1, 3, -1, -1])
    brain = TensorSpec(name="brain", dtypes=["BF16"], shape=[-1, 2])
    outputs = [
        TensorSpec(name=f"{each.name}_out", dtypes=each.dtypes, shape=each.shape) for each in (image, brain)
    ]
    lists = {"inputs": [image, brain], "outputs": outputs, "rows": RowKind.ROW_KIND_SAMPLE}
    async with Doors(await mesh.start(task="tensor", spec=lists)) as doors:
        said = await run_client(TENSORS, doors.address)
    assert said["image"]
    assert said["brain"]
    assert said["one"] == ["image_out"]
    assert "outputs[0].parameters.classification" in said["errors"][0]
    assert "parameters.beams" in said["errors"][1]
    assert "brain is missing" in said["stream"][0]
    assert said["stream"][1], "the stream survives a bad request"
    assert said["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": ["-1", "3", "-1", "-1"]},
        {"name": "brain", "datatype": "BF16", "shape": ["-1", "2"]},
    ]
    assert [each["name"] for each in said["outputs"]] == ["image_out", "brain_out"]
