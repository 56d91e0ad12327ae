"""The hand codec says exactly what the generated class says, in both directions."""

import math

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import (
    ITEM_BYTES,
    Place,
    TensorView,
    decode_frame,
    decode_tensor,
    encode_frame,
    encode_tensor,
    from_numpy,
    to_numpy,
)
from stagemesh.v1.stage_pb2 import Frame, Step
from stagemesh.v1.tensor_pb2 import SharedMemory, Tensor


@st.composite
def views(draw: st.DrawFn) -> TensorView:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    size = math.prod(shape) * ITEM_BYTES[dtype]
    return TensorView(
        dtype, shape, memoryview(draw(st.binary(min_size=size, max_size=size))), draw(st.text(max_size=5))
    )


frames = st.builds(
    Frame,
    steps=st.lists(
        st.builds(Step, session=st.integers(0, 2**64 - 1), tokens=st.integers(0, 2**32 - 1)), max_size=4
    ),
    sent_unix_us=st.integers(0, 2**64 - 1),
)


@given(views())
def test_tensor_bytes_are_those_of_the_generated_class(view: TensorView) -> None:
    message = Tensor(name=view.name, dtype=view.dtype, shape=view.shape, data=bytes(view.data))
    wire = b"".join(encode_tensor(view))
    assert wire == message.SerializeToString()
    assert decode_tensor(wire) == view


@given(frames, st.none() | views())
def test_frame_bytes_are_those_of_the_generated_class(frame: Frame, view: TensorView | None) -> None:
    whole = Frame.FromString(frame.SerializeToString())
    if view is not None:
        whole.tensor.CopyFrom(
            Tensor(name=view.name, dtype=view.dtype, shape=view.shape, data=bytes(view.data))
        )
    wire = encode_frame(frame, view)
    assert wire == whole.SerializeToString()
    assert decode_frame(whole.SerializeToString()) == (frame, view)


def test_payload_is_a_view_of_the_received_bytes() -> None:
    wire = encode_frame(Frame(), TensorView("U8", (3,), memoryview(b"abc")))
    _, view = decode_frame(wire)
    assert view is not None
    assert view.data.obj is wire


def test_fields_after_the_tensor_and_unknown_fields_are_kept() -> None:
    tensor = encode_frame(Frame(), TensorView("U8", (1,), memoryview(b"x")))
    unknown = b"\xfa\x07\x01z"  # field 127, one byte: from a newer version
    frame, view = decode_frame(tensor + Frame(sent_unix_us=7).SerializeToString() + unknown)
    assert frame.sent_unix_us == 7
    assert view == TensorView("U8", (1,), memoryview(b"x"))
    assert unknown in frame.SerializeToString()


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_crashes(data: bytes) -> None:
    try:
        decode_frame(data)
    except (DecodeError, InvalidArgument):
        pass


@given(views(), st.data())
def test_a_truncated_frame_is_refused_or_smaller(view: TensorView, data: st.DataObject) -> None:
    wire = encode_frame(Frame(sent_unix_us=1), view)
    cut = data.draw(st.integers(0, len(wire) - 1))
    try:
        assert decode_frame(wire[:cut]) != decode_frame(wire)
    except (DecodeError, InvalidArgument):
        pass


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(dtype="F31", shape=[1], data=b"1234"), "x.dtype"),
        (Tensor(dtype="F32", shape=[2], data=b"1234"), "x.data"),
        (Tensor(dtype="F32", shape=[2**40, 2**40], data=b""), "x.shape"),
        (Tensor(dtype="U8", shape=[1] * 17, data=b"1"), "x.shape"),
        (Tensor(dtype="BF16", shape=[1], data=b"12"), "x.dtype"),
        (Tensor(dtype="U8", shape=[1], data=b"1", encoding="zip"), "x.encoding"),
    ],
)
def test_a_bad_tensor_names_its_field(tensor: Tensor, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        to_numpy(tensor, "x")
    assert caught.value.field == field


def test_numpy_round_trip_and_refusal() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    np.testing.assert_array_equal(to_numpy(from_numpy("a", array)), array)
    with pytest.raises(InvalidArgument):
        from_numpy("c", np.zeros(1, dtype=np.complex64))


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (Tensor(dtype="F31", shape=[0]), "tensor.dtype"),
        (Tensor(dtype="U8", shape=[1] * 17, data=b"1"), "tensor.shape"),
        (Tensor(dtype="U8", shape=[1] * 300, data=b"1"), "tensor.shape"),
        (Tensor(dtype="U8", shape=[2**41]), "tensor.shape"),
        (Tensor(dtype="U8", shape=[1], data=b"1", encoding="zip"), "tensor.encoding"),
    ],
)
def test_a_bad_tensor_in_a_frame_names_its_field_each_time(tensor: Tensor, field: str) -> None:
    for _ in range(2):  # the second time its header is known
        with pytest.raises(InvalidArgument) as caught:
            decode_frame(Frame(tensor=tensor).SerializeToString())
        assert caught.value.field == field


@given(views(), st.integers(0, 64))
def test_a_payload_in_shared_memory_is_a_view_of_the_segment(view: TensorView, offset: int) -> None:
    segment = memoryview(bytes(offset) + bytes(view.data) + b"tail")
    place = Place(offset, view.data.nbytes)
    wire = encode_frame(Frame(sent_unix_us=3), view, place)
    message = Frame.FromString(wire)
    assert not message.tensor.data
    assert (message.tensor.shared.offset, message.tensor.shared.length) == (offset, view.data.nbytes)
    assert message.SerializeToString() == wire
    frame, found = decode_frame(wire, segment)
    assert (frame.sent_unix_us, found) == (3, view)
    assert found is not None
    assert found.data.obj is segment.obj


@pytest.mark.parametrize(
    ("shared", "field"),
    [
        (SharedMemory(offset=0, length=8), "tensor.data"),
        (SharedMemory(offset=17, length=4), "tensor.shared.offset"),
        (SharedMemory(offset=2**64 - 4, length=4), "tensor.shared.offset"),
        (SharedMemory(offset=13, length=4), "tensor.shared.length"),
        (SharedMemory(offset=4, length=2**64 - 4), "tensor.shared.length"),
        (SharedMemory(segment="other", offset=0, length=4), "tensor.shared.segment"),
    ],
)
def test_a_place_outside_the_segment_is_refused_by_name(shared: SharedMemory, field: str) -> None:
    wire = Frame(tensor=Tensor(dtype="F32", shape=[1], shared=shared)).SerializeToString()
    with pytest.raises(InvalidArgument) as caught:
        decode_frame(wire, memoryview(bytes(16)))
    assert caught.value.field == field
    assert "other" not in caught.value.message


def test_shared_memory_without_a_segment_or_beside_bytes_is_refused() -> None:
    shared = SharedMemory(offset=0, length=4)
    with pytest.raises(InvalidArgument) as caught:
        decode_frame(Frame(tensor=Tensor(dtype="F32", shape=[1], shared=shared)).SerializeToString())
    assert caught.value.field == "tensor.shared.segment"
    both = Tensor(dtype="F32", shape=[1], shared=shared, data=b"1234")
    with pytest.raises(InvalidArgument) as caught:
        decode_frame(Frame(tensor=both).SerializeToString(), memoryview(bytes(16)))
    assert caught.value.field == "tensor.data"
