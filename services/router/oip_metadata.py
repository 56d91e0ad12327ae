"""What the Open Inference Protocol says about the server and its models. Pure."""

from stagemesh.oip import open_inference_pb2 as oip
from stagemesh.v1 import registry_pb2

EXTENSIONS = ["model_stream_infer", "binary_tensor_data"]


def model_metadata(spec: registry_pb2.ModelSpec) -> oip.ModelMetadataResponse:
    """Inputs and outputs by task; -1 where the size varies. `text_input` is an alternative to the tensors."""
    hidden, vocabulary = spec.hidden_size or -1, spec.vocab_size or -1
    metadata = oip.ModelMetadataResponse(name=spec.name, versions=[spec.revision], platform="stagemesh")
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if spec.task == "embed" else [])]
    for name in names:
        metadata.inputs.add(name=name, datatype="INT64", shape=[-1, -1])
    if spec.task == "embed":
        metadata.inputs.add(name="text_input", datatype="BYTES", shape=[-1])
        metadata.outputs.add(name="sentence_embedding", datatype="FP32", shape=[-1, hidden])
        metadata.outputs.add(name="last_hidden_state", datatype="FP32", shape=[-1, -1, hidden])
    else:
        metadata.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        metadata.outputs.add(name="logits", datatype="FP32", shape=[-1, -1, vocabulary])
        metadata.outputs.add(name="text_output", datatype="BYTES", shape=[-1])
    return metadata
