import numpy as np
import pytest
from ml_dtypes import bfloat16

from stagemesh.client.arrays import array_of, tensor_of
from stagemesh.errors import InvalidArgument
from stagemesh.tensor import NUMPY_DTYPES
from stagemesh.v1.tensor_pb2 import Tensor


@pytest.mark.parametrize("code", NUMPY_DTYPES.values())
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1, 2)])
def test_every_dtype_and_rank_comes_back(code, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(code)
    back = array_of(tensor_of("x", array), "x")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_bfloat16_goes_as_itself_and_comes_back_as_float32():
    array = np.array([[1.5, -2.0], [np.inf, 3.25]], bfloat16)
    tensor = tensor_of("x", array)
    assert (tensor.dtype, list(tensor.shape), len(tensor.data)) == ("BF16", [2, 2], 8)
    back = array_of(tensor, "x")
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, array.astype(np.float32))


def test_a_cut_payload_is_refused():
    with pytest.raises(InvalidArgument):
        array_of(Tensor(dtype="BF16", shape=[2], data=b"123"), "outputs[0]")
