"""What the Open Inference Protocol says about the server and its models. Pure."""

from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.v1 import registry_pb2

from ..signature import signature_of
from .codec import NAMES

EXTENSIONS = ["model_stream_infer", "binary_tensor_data", "schedule_policy"]
TEXT_TASKS = ("generate", "embed")


def model_metadata(spec: registry_pb2.ModelSpec) -> oip.ModelMetadataResponse:
    """Inputs and outputs as the model's spec says; -1 where the size varies, the first dimension is the batch.

    `text_input` is an alternative to the tensors, of models that generate or embed.
    """
    signature = signature_of(spec)
    metadata = oip.ModelMetadataResponse(name=spec.name, versions=[spec.revision], platform="stagemesh")
    for rules, described in ((signature.inputs, metadata.inputs), (signature.outputs, metadata.outputs)):
        for rule in rules:
            datatype = NAMES[rule.dtypes[0] if rule.dtypes else "F32"]
            described.add(name=rule.name, datatype=datatype, shape=rule.shape)
    if spec.task in TEXT_TASKS:
        metadata.inputs.add(name="text_input", datatype="BYTES", shape=[1 if spec.task == "generate" else -1])
    if spec.task == "generate":
        metadata.outputs.add(name="text_output", datatype="BYTES", shape=[-1])
    return metadata
