"""What prompts begin with, by digests: stages share keys and values by them, and routers send like to like. Pure."""

import hashlib
import struct
from collections.abc import Sequence

# Positions of one block.
BLOCK = 16
DIGEST_BYTES = 16
SHORT_BYTES = 8
"""Of a digest that routers are told. Two prompts that share them by chance cost time: stages compare all of it."""


def digests(token_ids: Sequence[int]) -> list[bytes]:
    """A digest for each full block of a prompt, over every token up to that block's end."""
    out: list[bytes] = []
    before = b""
    for at in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        block = struct.pack(f"<{BLOCK}I", *token_ids[at : at + BLOCK])
        before = hashlib.blake2b(before + block, digest_size=DIGEST_BYTES).digest()
        out.append(before)
    return out


def split_digests(joined: bytes) -> list[bytes]:
    """Digests as they travel, one after the other; what is left over at the end is dropped."""
    whole = len(joined) // DIGEST_BYTES * DIGEST_BYTES
    return [joined[at : at + DIGEST_BYTES] for at in range(0, whole, DIGEST_BYTES)]
