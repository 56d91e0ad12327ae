"""Use tritonclient, unmodified, against a router: readiness, metadata, inference, an error. Prints JSON."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str, model: str) -> None:
    tensors = {name: np.array(ids, dtype=np.int64) for name, ids in json.load(sys.stdin).items()}
    client = triton.InferenceServerClient(address)
    metadata = client.get_model_metadata(model)
    inputs = []
    for name, array in tensors.items():
        tensor = triton.InferInput(name, list(array.shape), "INT64")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("sentence_embedding")]
    result = client.infer(model, inputs, outputs=outputs)
    try:
        client.infer("no-such-model", inputs)
        error = ""
    except triton.InferenceServerException as problem:
        error = str(problem)
    print(
        json.dumps(
            {
                "server_ready": client.is_server_ready(),
                "model_ready": client.is_model_ready(model),
                "inputs": [tensor.name for tensor in metadata.inputs],
                "outputs": [tensor.name for tensor in metadata.outputs],
                "sentence_embedding": result.as_numpy("sentence_embedding").tolist(),
                "error": error,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
