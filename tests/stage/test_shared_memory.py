"""The lane: payloads lie in shared memory where both ends agree and there is room, and in the stream otherwise."""

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from stagemesh.services.stage import metrics
from stagemesh.services.stage.shared_memory import LEAST_BYTES, ReceivingLane, SendingLane
from stagemesh.services.stage.shared_memory_segment import HEADER_BYTES
from stagemesh.services.stage.tensors import from_view, to_view

from stagemesh.errors import InvalidArgument
from stagemesh.tensor import Place, TensorView, encode_frame
from stagemesh.v1.stage_pb2 import Feedback, Frame, Hello, SharedMemoryOffer
from tests.stage.two_stages import Route, route_of, settled

PAYLOAD = 2 * LEAST_BYTES
ROOM = 4 * PAYLOAD
CPU = torch.device("cpu")
SHM = Path("/dev/shm")


class Counted:
    """How many tensors went each way since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, float]:
        return {
            lane: metrics.TENSOR_FRAMES.labels(lane)._value.get() for lane in ("shared", "bytes", "fallback")
        }

    def __call__(self) -> dict[str, float]:
        return {
            lane: count - self._before[lane]
            for lane, count in self._now().items()
            if count != self._before[lane]
        }


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[tuple[SendingLane, ReceivingLane]]:
    sending = SendingLane(ROOM, tmp_path)
    assert sending.offer is not None
    receiving = ReceivingLane.accept(sending.offer, tmp_path)
    sending.answered(receiving.accepted)
    assert list(tmp_path.iterdir()) == []  # the name is gone before the first frame
    yield sending, receiving
    sending.close()


def rows(value: float, nbytes: int = PAYLOAD) -> torch.Tensor:
    return torch.full((nbytes // 512, 128), value, dtype=torch.float32)


def through(lanes: tuple[SendingLane, ReceivingLane], tensor: torch.Tensor) -> torch.Tensor:
    sending, receiving = lanes
    message = sending.encode(Frame(sent_unix_us=7), to_view(tensor))
    frame, view = receiving.decode(message)
    assert frame.sent_unix_us == 7
    assert view is not None
    return from_view(view, CPU)


def test_a_payload_lies_in_shared_memory_and_is_computed_on_there(
    lanes: tuple[SendingLane, ReceivingLane],
) -> None:
    count = Counted()
    message = lanes[0].encode(Frame(), to_view(rows(3)))
    assert len(message) < 100
    _, view = lanes[1].decode(message)
    assert view is not None
    assert torch.equal(from_view(view, CPU), rows(3))
    assert count() == {"shared": 1}


def test_a_place_is_used_again_only_when_the_last_user_let_go(
    lanes: tuple[SendingLane, ReceivingLane],
) -> None:
    count = Counted()
    first, second, third, fourth = (through(lanes, rows(value)) for value in range(4))
    kept = third[5:9].view(-1)  # a view of a view
    del second, third
    assert torch.equal(through(lanes, rows(9)), rows(9))  # in the second's place, and at once given up
    assert torch.equal(through(lanes, rows(10)), rows(10))
    fifth = through(lanes, rows(11))
    assert count() == {"shared": 7}
    full = through(lanes, rows(12))  # the third's place is not free yet: this one went as bytes
    assert count() == {"shared": 7, "fallback": 1}
    assert torch.equal(kept, rows(2)[5:9].view(-1))
    assert torch.equal(first, rows(0))
    assert torch.equal(fourth, rows(3))
    assert torch.equal(fifth, rows(11))
    assert torch.equal(full, rows(12))
    del kept
    through(lanes, rows(13))
    assert count() == {"shared": 8, "fallback": 1}


def test_a_frame_waits_only_while_the_receiver_has_two_others(
    lanes: tuple[SendingLane, ReceivingLane],
) -> None:
    half = rows(1, ROOM // 2)
    held = [through(lanes, half)]
    assert not lanes[0].waits(to_view(half))  # there is room
    assert not lanes[0].waits(to_view(rows(1, ROOM)))  # there is none, and only one is under way
    held.append(through(lanes, half))
    assert lanes[0].waits(to_view(half))
    assert not lanes[0].waits(None)
    assert not lanes[0].waits(to_view(rows(1, LEAST_BYTES // 2)))
    assert not lanes[0].waits(to_view(rows(1, 2 * ROOM)))  # there never will be
    held.pop(0)
    assert not lanes[0].waits(to_view(half))


def test_small_and_huge_payloads_and_none_travel_in_the_stream(
    lanes: tuple[SendingLane, ReceivingLane],
) -> None:
    count = Counted()
    assert torch.equal(through(lanes, rows(1, LEAST_BYTES // 2)), rows(1, LEAST_BYTES // 2))
    assert torch.equal(through(lanes, rows(1, 2 * ROOM)), rows(1, 2 * ROOM))
    assert lanes[1].decode(lanes[0].encode(Frame(sent_unix_us=3), None)) == (Frame(sent_unix_us=3), None)
    assert count() == {"bytes": 1, "fallback": 1}


def test_a_view_outlives_both_ends(tmp_path: Path) -> None:
    sending = SendingLane(ROOM, tmp_path)
    assert sending.offer is not None
    receiving = ReceivingLane.accept(sending.offer, tmp_path)
    sending.answered(True)
    kept = through((sending, receiving), rows(4))
    sending.close()
    del sending, receiving
    gc.collect()
    assert torch.equal(kept, rows(4))


def test_a_receiver_that_refuses_gets_bytes(tmp_path: Path) -> None:
    count = Counted()
    sending = SendingLane(ROOM, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    receiving = ReceivingLane.accept(SharedMemoryOffer(segment="stagemesh-" + "0" * 32), tmp_path)
    sending.answered(receiving.accepted)
    assert list(tmp_path.iterdir()) == []
    assert sending.offer is None
    assert torch.equal(through((sending, receiving), rows(5)), rows(5))
    assert count() == {"bytes": 1}


def test_a_host_without_shared_memory_sends_bytes(tmp_path: Path) -> None:
    for sending in (SendingLane(ROOM, tmp_path / "absent"), SendingLane(0, tmp_path)):
        assert sending.offer is None
        sending.answered(True)  # whatever the peer says
        assert torch.equal(through((sending, ReceivingLane(None)), rows(6)), rows(6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (Place(HEADER_BYTES + ROOM, 512), "tensor.shared.length"),
        (Place(HEADER_BYTES + ROOM + 1, 512), "tensor.shared.offset"),
        (Place(2**64 - 1, 512), "tensor.shared.offset"),
        (Place(HEADER_BYTES, 2**64 - 1), "tensor.shared.length"),
        (Place(HEADER_BYTES, 256), "tensor.data"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_read(
    lanes: tuple[SendingLane, ReceivingLane], place: Place, field: str
) -> None:
    view = TensorView("F32", (1, 128), np.zeros(512, np.uint8).data)
    with pytest.raises(InvalidArgument) as caught:
        lanes[1].decode(encode_frame(Frame(), view, place))
    assert caught.value.field == field
    assert repr(lanes[1]) == "<ReceivingLane on received=0 used=0>"


# ---- over real streams ----


def names() -> set[str]:
    return {path.name for path in SHM.glob("stagemesh-*")}


PROMPT = [(7 * number) % 500 + 2 for number in range(300)]
MIB = 2**20


async def tokens(route: Route) -> list[int]:
    found = await route.generate(PROMPT, 5)
    await settled(route)
    return found


@pytest.mark.parametrize("chunk_tokens", [128, 512])
async def test_tokens_are_the_same_with_and_without_the_lane(llama: Path, chunk_tokens: int) -> None:
    before = names()  # of others, who may have been killed
    async with route_of(llama, chunk_tokens=chunk_tokens) as route:
        count = Counted()
        expected = await tokens(route)
        assert "shared" not in count()
    for sender, receiver in ((MIB, 0), (0, MIB)):
        async with route_of(llama, chunk_tokens=chunk_tokens) as route:
            count = Counted()
            route.replicas[0].links.shared_memory_bytes = sender
            route.replicas[1].links.shared_memory_bytes = receiver
            assert await tokens(route) == expected
            assert "shared" not in count()
            assert names() <= before
    async with route_of(llama, chunk_tokens=chunk_tokens) as route:
        count = Counted()
        for replica in route.replicas:
            replica.links.shared_memory_bytes = MIB
        for _ in range(4):
            assert await tokens(route) == expected
            assert names() <= before
        assert count()["shared"] >= (300 // chunk_tokens or 1)  # later ones begin with its KV
        assert "fallback" not in count()
        # Nothing that has computed still holds a payload.
        (link,) = route.replicas[0].links._links.values()
        assert link._outbox.lane._find(MIB) == HEADER_BYTES
    assert names() <= before


async def test_a_segment_too_small_for_all_carries_what_it_can(llama: Path) -> None:
    async with route_of(llama, chunk_tokens=128) as route:
        expected = await tokens(route)
    async with route_of(llama, chunk_tokens=128) as route:
        for replica in route.replicas:
            replica.links.shared_memory_bytes = 65 * 1024  # one chunk of 128 rows of 512 bytes
        count = Counted()
        assert await tokens(route) == expected
        assert count()["shared"] >= 1


async def test_a_hostile_place_ends_its_stream_and_nothing_else(llama: Path) -> None:
    async with route_of(llama) as route:
        for replica in route.replicas:
            replica.links.shared_memory_bytes = MIB
        lane = SendingLane(MIB)
        hello = Frame(hello=Hello(protocol=1, to_replica="r1", from_replica="evil", shared=lane.offer))
        view = TensorView("F32", (1, 128), np.zeros(512, np.uint8).data)
        frames = [hello.SerializeToString(), encode_frame(Frame(), view, Place(2**40, 512))]
        with pytest.raises(InvalidArgument) as caught:
            await route.relay(1, frames)
        assert caught.value.field == "tensor.shared.offset"
        assert lane.offer is not None
        assert lane.offer.segment not in caught.value.message
        lane.close()
        assert len(await tokens(route)) == 5


async def test_an_offer_that_is_not_one_is_answered_with_no(llama: Path) -> None:
    async with route_of(llama) as route:
        route.replicas[1].links.shared_memory_bytes = MIB
        for name in ("", "stagemesh-" + "0" * 32, "../etc/passwd", "x" * 10_000):
            offer = SharedMemoryOffer(segment=name, length=MIB, cookie=bytes(32))
            hello = Frame(hello=Hello(protocol=1, to_replica="r1", shared=offer))
            (first, *_) = await route.relay(1, [hello.SerializeToString()])
            assert isinstance(first, Feedback)
            assert first.HasField("hello")
            assert not first.hello.shared_accepted
