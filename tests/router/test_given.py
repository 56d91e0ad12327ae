"""An input's bytes and its array say the same, whichever of them it was given by."""

import numpy as np
import pytest
from stagemesh.services.router.given import Input
from stagemesh.services.router.infer import Inference
from stagemesh.services.router.lossless import BITS
from stagemesh.services.router.micro_batch import MicroBatch
from stagemesh.services.router.validate_tensors import Batch

from .specs import model


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_bytes_and_array_say_the_same(dtype):
    array = np.arange(6).reshape(2, 3).astype(BITS[dtype])
    by_bytes, by_array = Input("x", dtype, (2, 3), array.tobytes()), Input("x", dtype, (2, 3), array=array)
    assert by_array.data == by_bytes.data == array.tobytes()
    for each in (by_bytes, by_array):
        assert each.array.dtype == array.dtype
        np.testing.assert_array_equal(each.array, array)
        assert each.data is each.data
        assert each.array is each.array


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("lengths", [[3, 3, 3], [3, 1, 2]])
def test_each_part_is_sent_what_its_rows_hold(by_token, lengths):
    """Whole, as it came; a part of it; and with padding left out."""
    if not by_token:
        lengths = [1, 1, 1]
    array = np.arange(18, dtype="<i4").reshape(3, 3, 2)
    given = Input("x", "I32", array.shape, array.tobytes())
    batch = Batch([given], lengths, [], by_token)
    inference = Inference(batch, None, None, None, None, None, max_output_bytes=0)
    for rows in (range(3), range(1), range(1, 3)):
        tokens = sum(lengths[row] for row in rows)
        data = inference._packed(given, rows, tokens)
        part = MicroBatch.of([given], lengths[rows.start : rows.stop], [], model(), by_token=by_token)
        expected = array[rows.start : rows.stop]
        if by_token:
            expected = np.concatenate([array[row, : lengths[row]] for row in rows])
        assert (part.tokens, part.shapes, part.nbytes) == (tokens, [expected.shape], expected.nbytes)
        assert data == expected.tobytes()
    padded = by_token and sum(lengths) < 9
    assert (inference._packed(given, range(3), sum(lengths)) is not given.data) == padded, "no copy else"
