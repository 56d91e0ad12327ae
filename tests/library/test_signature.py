"""What a model takes and gives, and its way into the desired state and back."""

import pytest

from stagemesh.signature import ANY, NOTHING, Signature, Tensor, token_inputs
from stagemesh.v1.registry_pb2 import ROW_KIND_TOKEN, ModelSpec

CLASSIFIER = Signature(
    token_inputs(["token_type_ids"]),
    (
        Tensor("logits", ("F32",), (ANY, 3)),
        Tensor("last_hidden_state", ("F32",), (ANY, ANY, 8), per_token=True),
    ),
    "token",
    ("a", "b", "c"),
)


@pytest.mark.parametrize("signature", [CLASSIFIER, NOTHING])
def test_round_trip(signature: Signature) -> None:
    spec = ModelSpec()
    signature.write(spec)
    assert Signature.read(ModelSpec.FromString(spec.SerializeToString())) == signature


def test_record() -> None:
    spec = ModelSpec()
    CLASSIFIER.write(spec)
    assert [t.name for t in spec.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [t.optional for t in spec.inputs] == [False, True, True]
    assert spec.inputs[0].dtypes[0] == "I64"
    assert list(spec.outputs[0].shape) == [-1, 3]
    assert [t.per_token for t in spec.outputs] == [False, True]
    assert spec.rows == ROW_KIND_TOKEN
    assert list(spec.labels) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "dtypes", "shape"),
    [
        ("", ("F32",), (1,)),
        ("x", (), (1,)),
        ("x", ("F32",), ()),
        ("x", ("F33",), (1,)),
        ("x", ("F32",), (0,)),
    ],
)
def test_what_is_no_tensor(name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Tensor(name, dtypes, shape)


def test_no_name_twice() -> None:
    x = Tensor("x", ("F32",), (1,))
    with pytest.raises(ValueError, match="twice"):
        Signature((x, x))
