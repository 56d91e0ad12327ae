"""`infer` on named tensors of any rank and dtype, against a scripted router on a real socket."""

import json

import numpy as np
import pytest

from stagemesh.cli.infer_files import read_inputs
from stagemesh.errors import InvalidArgument
from stagemesh.v1.registry_pb2 import TensorSpec


def rule(name, *dtypes, optional=False):
    return TensorSpec(name=name, dtypes=dtypes, shape=[-1, -1], optional=optional)


@pytest.fixture
def ask(stagemesh, router):
    return lambda *rest, **more: stagemesh("infer", *rest, "--address", router.address, **more)


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "image.npy", np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4))
    np.save(tmp_path / "ids.npy", np.array([[1], [2]], np.int16))
    return tmp_path


def test_an_npy_is_the_only_input(ask, router, folder):
    del router.spec.inputs[:]
    router.spec.inputs.extend([rule("image", "U8"), rule("scale", "F32", optional=True)])
    result = ask(folder / "image.npy", "--json")
    assert result.exit_code == 0, result.stderr
    outputs = json.loads(result.stdout)["outputs"]
    assert (outputs["image_x2"]["dtype"], outputs["image_x2"]["shape"]) == ("uint8", [1, 2, 3, 4])


def test_an_npy_that_could_be_any_input_must_be_named(ask, router, folder):
    router.spec.inputs.extend([rule("image", "U8"), rule("ids", "I16")])
    refused = ask(folder / "image.npy")
    assert refused.exit_code == 1
    assert "--input NAME=image.npy (the model takes image, ids)" in refused.stderr
    result = ask("--input", f"image={folder}/image.npy", "--input", f"ids={folder}/ids.npy", "--json")
    outputs = json.loads(result.stdout)["outputs"]
    assert outputs["ids_x2"] == {"dtype": "int16", "shape": [2, 1], "data": [[2], [4]]}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", "x"], "not NAME=FILE.npy"),
        (["--input", "x=none.npy"], "none.npy"),
        (["--text", "a", "--describe"], "give a FILE"),
        ([], "give a FILE"),
    ],
)
def test_a_wrong_call_is_one_line(ask, arguments, said):
    result = ask(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_objects_in_an_npy_are_not_unpickled(ask, tmp_path):
    np.save(tmp_path / "in.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    result = ask("--input", f"x={tmp_path}/in.npy")
    assert result.exit_code == 1
    assert "plain array" in result.stderr


def test_describe_says_what_the_model_takes(ask, router):
    router.spec.inputs.extend([rule("image", "U8", "F32"), rule("scale", "F32", optional=True)])
    router.spec.outputs.append(rule("score", "F16"))
    said = ask("--describe").stdout
    assert "image: U8 or F32 [any, any]\n" in said
    assert "scale: F32 [any, any] (optional)" in said
    listed = json.loads(ask("--describe", "--json").stdout)
    assert listed["outputs"] == [{"name": "score", "dtypes": ["F16"], "shape": [-1, -1], "optional": False}]
    assert not router.requests


def test_help_teaches_by_example(stagemesh):
    said = stagemesh("infer", "--help", env={"COLUMNS": "120"}).stdout
    assert "stagemesh infer batch.npz --out answer.npz" in said
    assert "--input a=a.npy --input b=b.npy" in said


@pytest.mark.parametrize(
    ("native", "value", "dtype"),
    [
        ("F64", [[0.1]], np.float64),
        ("F16", [[0.1]], np.float16),
        ("F32", [[1, 2]], np.float32),
        ("I64", [[1, 2]], np.int64),
        ("BOOL", [[True]], np.bool_),
        ("", [[0.5]], np.float32),
        ("I64", [[0.5]], np.float32),  # for the router to refuse, not rounded here
    ],
)
def test_numbers_of_json_take_the_models_dtype(tmp_path, native, value, dtype):
    (tmp_path / "in.json").write_text(json.dumps({"x": value}))
    rules = [rule("x", native)] if native else []
    array = read_inputs(tmp_path / "in.json", (), rules, cast=False)["x"]
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, np.array(value, dtype))


def test_arrays_keep_their_dtype_unless_cast(tmp_path):
    np.savez(tmp_path / "in.npz", x=np.array([[0.1, -2.0]]))
    rules = [rule("x", "F32")]
    assert read_inputs(tmp_path / "in.npz", (), rules, cast=False)["x"].dtype == np.float64
    cast = read_inputs(tmp_path / "in.npz", (), rules, cast=True)["x"]
    assert cast.dtype == np.float32
    rounded = read_inputs(tmp_path / "in.npz", (), [rule("x", "BF16")], cast=True)["x"]
    assert rounded.tolist() == [[0.10009765625, -2.0]]
    special = np.array([np.nan, np.inf, -np.inf, 3.4e38, 1.00390625])
    np.savez(tmp_path / "in.npz", x=special)
    rounded = read_inputs(tmp_path / "in.npz", (), [rule("x", "BF16")], cast=True)["x"]
    np.testing.assert_array_equal(rounded, [np.nan, np.inf, -np.inf, np.inf, 1.0])


def test_an_input_given_twice(tmp_path):
    np.savez(tmp_path / "in.npz", x=np.zeros(1))
    with pytest.raises(InvalidArgument, match="given twice"):
        read_inputs(tmp_path / "in.npz", [f"x={tmp_path}/in.npz"], [], cast=False)
