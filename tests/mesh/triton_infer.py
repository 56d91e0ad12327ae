"""An unmodified client of the Open Inference Protocol: asks a model with the arrays of one .npz, and writes another.

A process of its own: tritonclient's stubs and ours claim the same protobuf package.
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(address: str, model: str, given: str, answered: str) -> None:
    """Inputs and outputs are those that the model's metadata names."""
    arrays = np.load(given)
    client = triton.InferenceServerClient(address)
    metadata = client.get_model_metadata(model)
    inputs = []
    for described in metadata.inputs:
        array = arrays[described.name]
        asked = triton.InferInput(described.name, list(array.shape), described.datatype)
        asked.set_data_from_numpy(array)
        inputs.append(asked)
    answer = client.infer(model, inputs)
    np.savez(answered, **{output.name: answer.as_numpy(output.name) for output in metadata.outputs})


if __name__ == "__main__":
    main(*sys.argv[1:])
