"""Protobuf's wire format, as far as messages are written and read by hand (https://protobuf.dev/programming-guides/encoding/)."""

from google.protobuf.message import DecodeError

_LENGTH_DELIMITED = 2


def key(number: int) -> bytes:
    """What precedes the length of a field that is a message, bytes or a text."""
    return varint(number << 3 | _LENGTH_DELIMITED)


def varint(value: int) -> bytes:
    """A number as the wire format has it, 7 bits a byte."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, at: int, end: int) -> tuple[int, int]:
    """The number at `data[at:]`, and where it ends; raises `DecodeError` when `end` comes first."""
    value = shift = 0
    while True:
        if at >= end or shift > 63:
            raise DecodeError("truncated or overlong varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def split(data: bytes | memoryview, at: int, end: int, number: int) -> tuple[bytes, int, int]:
    """Cut the message `data[at:end]` into what is not field `number`, and where that field's (last) content lies.

    The place is (0, 0) when the field is absent; a message cannot begin with its content.

    Raises:
        DecodeError: when the top level is not protobuf wire format.
    """
    kept_from = at
    rest: list[bytes | memoryview] = []
    begin = stop = 0
    while at < end:
        start = at
        tag = data[at]
        at += 1
        if tag > 0x7F:
            tag, at = read_varint(data, start, end)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            if at >= end:
                raise DecodeError("truncated field")
            length = data[at]
            at += 1
            if length > 0x7F:
                length, at = read_varint(data, at - 1, end)
            if tag >> 3 == number:
                begin, stop = at, at + length
                if stop > end:
                    raise DecodeError("truncated field")
                rest.append(data[kept_from:start])
                kept_from = stop
            at += length
        elif wire_type == 0:
            while at < end and data[at] > 0x7F:
                at += 1
            at += 1
        elif wire_type == 1:
            at += 8
        elif wire_type == 5:
            at += 4
        else:
            raise DecodeError(f"wire type {wire_type} is not supported")
    if at > end:
        raise DecodeError("truncated field")
    if not rest:
        return bytes(data[kept_from:end]), begin, stop
    rest.append(data[kept_from:end])
    return b"".join(rest), begin, stop
