"""Messages over a connected stream socket, read and written on the event loop without tasks, buffers or copies in between.

Each message comes behind its length in four bytes, little-endian. What can be sent at once is: the caller's own
call is the write. What comes in is handed over one message a turn of the loop, so that a sender with many of them does
not hold up everybody else. Nothing is read while messages wait to be handed over, so the sender's kernel buffer fills.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

_LENGTH_BYTES = 4
# What is read at once, and at most when the rest of a long message is known to come.
_CHUNK, _LONG_CHUNK = 2**16, 2**20


class MessageSocket:
    """One end; it owns `sock` (connected, not blocking). Use it on the loop that runs now.

    Args:
        sock: the socket.
        on_message: called with each message.
        on_over: called once with the reason when the other end is gone or breaks the rules; not after `close`.
        largest: bytes of a message that is taken.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[bytes], None],
        on_over: Callable[[str], None],
        largest: int,
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._on_message = on_message
        self._on_over = on_over
        self._largest = largest
        self._loop = asyncio.get_running_loop()
        # What came and was not handed over; and whether the loop will look at it again by itself.
        self._came = bytearray()
        # Where short messages are read to: memory that is at hand, where a new object's would have to be fetched.
        self._chunk = memoryview(bytearray(_CHUNK))
        self._due = False
        self._unsent: deque[memoryview] = deque()
        self._drained = asyncio.Event()
        self.over = False
        self._loop.add_reader(self._fd, self._read)

    def __repr__(self) -> str:
        state = "over" if self.over else "open"
        return f"<MessageSocket {state} unsent={len(self._unsent)} unread={len(self._came)}>"

    # ---- out ----

    def send(self, data: bytes) -> bool:
        """Send a message behind those before it; whether the system has taken all of it. `drained` waits for that.

        Raises:
            ConnectionError: the other end is gone, or this one was closed.
        """
        if self.over:
            raise ConnectionResetError("the socket is closed")
        head = len(data).to_bytes(_LENGTH_BYTES, "little")
        if self._unsent:
            self._unsent.extend((memoryview(head), memoryview(data)))
            return False
        try:
            sent = self._sock.sendmsg((head, data))
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(f"it cannot be written to: {error.strerror}")
            raise ConnectionResetError("the other end is gone") from error
        if sent == _LENGTH_BYTES + len(data):
            return True
        if sent < _LENGTH_BYTES:
            self._unsent.append(memoryview(head)[sent:])
        self._unsent.append(memoryview(data)[max(0, sent - _LENGTH_BYTES) :])
        self._drained.clear()
        self._loop.add_writer(self._fd, self._write)
        return False

    async def drained(self) -> None:
        """Return when the system has taken everything.

        Raises:
            ConnectionError: it will not.
        """
        while self._unsent and not self.over:
            await self._drained.wait()
        if self.over:
            raise ConnectionResetError("the socket is closed")

    def _write(self) -> None:
        try:
            while self._unsent:
                piece = self._unsent[0]
                sent = self._sock.send(piece)
                if sent < len(piece):
                    self._unsent[0] = piece[sent:]
                    return
                self._unsent.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            return self._end(f"it cannot be written to: {error.strerror}")
        self._loop.remove_writer(self._fd)
        self._drained.set()

    # ---- in ----

    def _read(self) -> None:
        if self._due:
            return  # first what is here already
        came = self._came
        try:
            if came and (missing := self._missing()) > _CHUNK:
                data = memoryview(self._sock.recv(min(missing, _LONG_CHUNK)))
            else:
                data = self._chunk[: self._sock.recv_into(self._chunk)]
        except BlockingIOError:
            return
        except OSError as error:
            return self._end(f"it cannot be read: {error.strerror}")
        if not data:
            return self._end("it was closed")
        if not came and len(data) >= _LENGTH_BYTES:
            length = int.from_bytes(data[:_LENGTH_BYTES], "little")
            if len(data) == _LENGTH_BYTES + length and length <= self._largest:
                # Nearly always: one message, and all of it.
                return self._hand(bytes(data[_LENGTH_BYTES:]))
        came += data
        self._next()

    def _missing(self) -> int:
        """Bytes that the message under way still lacks; 0 when its length is not known."""
        if len(self._came) < _LENGTH_BYTES:
            return 0
        return int.from_bytes(self._came[:_LENGTH_BYTES], "little") + _LENGTH_BYTES - len(self._came)

    def _next(self) -> None:
        """Hand the first message over, if it is whole; the one behind it has its turn later."""
        self._due = False
        came = self._came
        if self.over or len(came) < _LENGTH_BYTES:
            return
        length = int.from_bytes(came[:_LENGTH_BYTES], "little")
        if length > self._largest:
            return self._end(f"a message of {length} bytes was announced, at most {self._largest} are taken")
        stop = _LENGTH_BYTES + length
        if len(came) < stop:
            return
        message = bytes(memoryview(came)[_LENGTH_BYTES:stop])
        del came[:stop]
        if self._missing() <= 0 and len(came) >= _LENGTH_BYTES:
            self._due = True
            self._loop.call_soon(self._next)
        self._hand(message)

    def _hand(self, message: bytes) -> None:
        try:
            self._on_message(message)
        except Exception:  # whoever takes messages deals with what it expects; this it did not
            log.exception("message_socket.failed")
            self._end("a message could not be handled")

    # ---- the end ----

    def _end(self, why: str) -> None:
        if not self.over:
            self.close()
            self._on_over(why)

    def close(self) -> None:
        """Let go of the socket; a second call does nothing. What the system has taken still arrives."""
        if self.over:
            return
        self.over = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self._unsent.clear()
        self._drained.set()
