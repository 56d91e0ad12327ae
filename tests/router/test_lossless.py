import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stagemesh.services.router.lossless import BITS, convert

from stagemesh.errors import InvalidArgument

DTYPES = sorted(set(BITS) - {"BF16"})
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**24, 2**24 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
    st.sampled_from(
        [0.5, 1e300, -1e300, 65504.0, 65505.0, 2.0**63, 2.0**64, float("inf"), float("nan"), 5e-324]
    ),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
)


def exact(value):
    """A numpy number as Python's own, which never rounds."""
    value = value.item()
    return value if value == value else "nan"


def held(values, dtype):
    with np.errstate(all="ignore"):
        try:
            return np.array(values).astype(BITS[dtype])
        except (OverflowError, ValueError):
            return np.zeros(1, BITS[dtype])


@given(st.lists(NUMBERS, min_size=1, max_size=4), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_no_value_changes_or_it_is_refused(numbers, given_, wanted):
    array = held(numbers, given_)
    try:
        made = convert(array, given_, wanted, "f")
    except InvalidArgument:
        return
    assert made.dtype == np.dtype(BITS[wanted])
    assert [exact(each) for each in made] == [exact(each) for each in array]


@pytest.mark.parametrize(
    ("values", "given_", "wanted", "fits"),
    [
        ([2**24, -(2**24)], "I64", "F32", True),
        ([2**24 + 1], "I64", "F32", False),
        ([2**60], "I64", "F32", True),
        ([2**53 + 1], "I64", "F64", False),
        ([2**63 - 1], "I64", "F64", False),
        ([2.0**63], "F64", "I64", False),
        ([-1], "I64", "U64", False),
        ([0, 1], "I32", "BOOL", True),
        ([2], "I32", "BOOL", False),
        ([True], "BOOL", "F16", True),
        ([0.1], "F64", "F32", False),
        ([0.5, np.nan, np.inf], "F64", "F16", True),
        ([65536.0], "F32", "F16", False),
        ([np.nan], "F32", "I32", False),
        ([300], "I32", "U8", False),
    ],
)
def test_what_fits(values, given_, wanted, fits):
    array = np.array(values, BITS[given_])
    if fits:
        np.testing.assert_array_equal(convert(array, given_, wanted, "f"), array)
    else:
        with pytest.raises(InvalidArgument, match=f"{given_} values that {wanted}") as caught:
            convert(array, given_, wanted, "f")
        assert caught.value.field == "f"


def test_bfloat16_as_ml_dtypes_has_it():
    from ml_dtypes import bfloat16

    every = np.arange(2**16, dtype=np.uint16)
    floats = every.view(bfloat16).astype(np.float32)
    np.testing.assert_array_equal(convert(every, "BF16", "F32", "f"), floats)
    back = convert(floats, "F32", "BF16", "f")
    np.testing.assert_array_equal(back.view(bfloat16).astype(np.float32), floats)
    assert (back[~np.isnan(floats)] == every[~np.isnan(floats)]).all()
    odd = np.array([0x7F800001, 0x3F800000], np.uint32).view(np.float32)
    assert convert(odd, "F32", "BF16", "f").tolist() == [0x7FC0, 0x3F80], "NaN is never infinity"
    for value in (1.001, 3e38):
        with pytest.raises(InvalidArgument):
            convert(np.array([value], np.float32), "F32", "BF16", "f")
    assert convert(np.array([256], np.int64), "I64", "BF16", "f").tolist() == [0x4380]
    with pytest.raises(InvalidArgument):
        convert(np.array([257], np.int64), "I64", "BF16", "f")
