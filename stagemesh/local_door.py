"""How two processes of one host that talk over gRPC come to share a Unix socket, without anybody else getting in.

1. Whoever calls says in which network of which host it is (`same_network.network_id`).
   Frames' hellos say it, and the metadata of other streams.
2. Whoever is called and is in the same one opens a `Door`: an abstract socket with a random name, for one connection.
   It tells name, cookie, and the address that it sees the caller's TCP connection come from.
3. The caller looks whether that connection is its own process's, and not a proxy's. If so it enters: it connects, looks
   that the other side is of its own user, and shows the cookie.
4. The door looks at the user and the cookie as well (names of abstract sockets are no secret), and answers with a byte.

Wherever this fails, within a second, both go on over gRPC. An abstract socket leaves nothing behind when its process is
killed.
"""

import asyncio
import hmac
import logging
import os
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from stagemesh.same_network import is_own_connection, network_id
from stagemesh.v1.stage_pb2 import LocalSocket

log = logging.getLogger(__name__)

# Metadata of a stream whose messages have no place for it: the caller's network, and a `LocalSocket` in answer.
NETWORK_KEY, OFFER_KEY = "stagemesh-network", "stagemesh-local-bin"
ENTER_TIMEOUT_S = 1.0
COOKIE_BYTES = 32
_WELCOME = b"\x01"
_PREFIX = "stagemesh-"
_CREDENTIALS = struct.Struct("3i")  # of the kernel's `struct ucred`: process, user, group


class Door:
    """Waits for one caller.

    Raises:
        OSError: no such socket can be had here.
    """

    def __init__(self) -> None:
        self._name = _PREFIX + secrets.token_hex(16)
        self._cookie = secrets.token_bytes(COOKIE_BYTES)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(b"\0" + self._name.encode())
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise

    def __repr__(self) -> str:
        return f"<Door {'closed' if self._listener.fileno() < 0 else 'open'}>"

    def offer(self, caller: str) -> LocalSocket:
        """What the caller is told; `caller` is where its connection comes from, in gRPC's spelling."""
        return LocalSocket(name=self._name, cookie=self._cookie, caller=caller)

    async def admitted(self) -> socket.socket:
        """The connection of the caller; whoever else comes is sent away."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            try:
                async with asyncio.timeout(ENTER_TIMEOUT_S):
                    if _of_this_user(sock) and await self._shows_the_cookie(sock):
                        await loop.sock_sendall(sock, _WELCOME)
                        self.close()
                        return sock
                log.warning("local_socket.sent_away")
            except (OSError, TimeoutError):
                log.warning("local_socket.sent_away")
            except BaseException:
                sock.close()
                raise
            sock.close()

    async def _shows_the_cookie(self, sock: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        shown = b""
        while len(shown) < COOKIE_BYTES:
            more = await loop.sock_recv(sock, COOKIE_BYTES - len(shown))
            if not more:
                return False
            shown += more
        return hmac.compare_digest(shown, self._cookie)

    def close(self) -> None:
        """Let nobody in any more; a second call does nothing."""
        self._listener.close()


def door_for(network: str) -> Door | None:
    """A door for a caller in that network; None when it is not this one, or no door can be had."""
    if not network or network != network_id():
        return None
    try:
        return Door()
    except OSError as error:
        log.info("local_socket.none: %s", os.strerror(error.errno or 0))
        return None


async def enter(
    offer: LocalSocket, is_direct: Callable[[str], bool] = is_own_connection
) -> socket.socket | None:
    """Go through the door that was offered; None, within a second, when it is not for us or leads nowhere.

    Args:
        offer: what the other end said.
        is_direct: whether the address at which it sees us is our own; called on another thread.
    """
    name = offer.name
    if not name.startswith(_PREFIX) or len(name) > 64 or len(offer.cookie) != COOKIE_BYTES:
        log.info("local_socket.refused: not an offer of ours")
        return None
    loop = asyncio.get_running_loop()
    if not await asyncio.to_thread(is_direct, offer.caller):
        log.info("local_socket.refused: something stands between the two ends")
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    entered = False
    try:
        sock.setblocking(False)
        async with asyncio.timeout(ENTER_TIMEOUT_S):
            await loop.sock_connect(sock, b"\0" + name.encode())
            if _of_this_user(sock):
                await loop.sock_sendall(sock, offer.cookie)
                entered = await loop.sock_recv(sock, 1) == _WELCOME
    except (OSError, TimeoutError) as error:
        log.info("local_socket.refused: %s", type(error).__name__)
    finally:
        if not entered:
            sock.close()
    return sock if entered else None


async def offer_door(context: Any) -> Door | None:
    """Answer a stream's metadata with a door, if they ask for one; `context` is the call's at its server, not yet answered."""
    asked = dict(context.invocation_metadata() or ()).get(NETWORK_KEY, "")
    door = door_for(asked if isinstance(asked, str) else "")
    if door is not None:
        try:
            offer = door.offer(context.peer()).SerializeToString()
            await context.send_initial_metadata(((OFFER_KEY, offer),))
        except BaseException:
            door.close()
            raise
    return door


async def enter_offered(call: Any) -> socket.socket | None:
    """Go through the door that the answer to a stream's metadata offers; None when it offers none, or it leads nowhere.

    Raises:
        AioRpcError: the call has failed.
    """
    answered = dict(await call.initial_metadata() or ())
    try:
        offer = LocalSocket.FromString(answered.get(OFFER_KEY, b""))
    except (DecodeError, TypeError):
        return None
    return await enter(offer) if offer.name else None


def _of_this_user(sock: socket.socket) -> bool:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    return bool(user == os.geteuid())
