"""What a broken stream needs to go on at another router: its token, and what had arrived. Pure.

Routers share nothing, so the token carries what the request does not say: the seed that was drawn, and how many tokens
were allowed. The rest is asked for again, and digests in the token tell whether it is still the same. It grants
nothing: whatever it says, a request may say itself. So without a shared key it has a checksum only; with one nobody
else can make one.
"""

import hashlib
import hmac
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagemesh.errors import ConfigError, FailedPrecondition, InvalidArgument
from stagemesh.v1 import inference_pb2, registry_pb2, stage_pb2

from .validate import check_token_ids

VERSION = 1
# version, seed, max_tokens, digests of revision, tenant and everything that decides the tokens
_BODY = struct.Struct("<BQI8s8s16s")
_MAC_BYTES = 16
_FIELD = "resume.token"
_MIN_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a token says: the request's seed, and its new tokens at most."""

    seed: int
    max_tokens: int
    revision: bytes
    tenant: bytes
    content: bytes


class ResumeTokens:
    """Makes and reads resume tokens; `key` is shared by all routers, or empty."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"ResumeTokens({'with a key' if self._key else 'without a key'})"

    def issue(
        self, spec: registry_pb2.ModelSpec, tenant: str, *, seed: int, max_tokens: int, content: bytes
    ) -> bytes:
        """The token of a request; `content` is its `content_digest`."""
        body = _BODY.pack(VERSION, seed, max_tokens, _revision(spec), _short(tenant.encode()), content)
        return body + self._mac(body)

    def read(self, token: bytes, spec: registry_pb2.ModelSpec, tenant: str) -> Drawn:
        """What the token says; `check_same` compares the rest once the request is prepared.

        Raises:
            InvalidArgument: it is none of ours, or another tenant's.
            FailedPrecondition: it was made by another version, or for another revision of the model.
        """
        if token and token[0] != VERSION:
            raise FailedPrecondition(
                f"{_FIELD}: is of version {token[0]}, this router knows {VERSION}", field=_FIELD
            )
        body, mac = token[: _BODY.size], token[_BODY.size :]
        if len(body) != _BODY.size or not hmac.compare_digest(mac, self._mac(body)):
            raise InvalidArgument(f"{_FIELD}: was not issued by a router of this service", field=_FIELD)
        drawn = Drawn(*_BODY.unpack(body)[1:])
        if drawn.tenant != _short(tenant.encode()):
            raise InvalidArgument(f"{_FIELD}: was given to another tenant", field=_FIELD)
        if drawn.revision != _revision(spec):
            raise FailedPrecondition(
                f"{_FIELD}: model {spec.name!r} has another revision by now, which cannot go on with the answer",
                field=_FIELD,
            )
        return drawn

    def made_for(self, token: bytes, spec: registry_pb2.ModelSpec) -> bool:
        """Whether the token says that its answer is of this revision; whatever else is wrong, `read` tells."""
        return len(token) >= _BODY.size and _BODY.unpack_from(token)[3] == _revision(spec)

    def _mac(self, body: bytes) -> bytes:
        if self._key:
            return hmac.digest(self._key, body, "sha256")[:_MAC_BYTES]
        return hashlib.blake2b(body, digest_size=_MAC_BYTES).digest()


def load_resume_key(path: Path) -> bytes:
    """The key in a file, blanks around it left out; raises `ConfigError`."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"resume_key: cannot read {path}: {error.strerror}") from None
    if len(key) < _MIN_KEY_BYTES:
        raise ConfigError(f"resume_key: {path} must hold at least {_MIN_KEY_BYTES} bytes")
    return key


def content_digest(
    model: str,
    token_ids: Sequence[int],
    sampling: stage_pb2.Sampling,
    stop: Iterable[str],
    stop_token_ids: Sequence[int],
    numbers: Sequence[int],
) -> bytes:
    """16 bytes over everything that decides an answer's tokens and text; `numbers` are limits and counts."""
    digest = hashlib.blake2b(digest_size=16)
    parts = (
        model.encode(),
        struct.pack(f"<{len(token_ids)}I", *token_ids),
        sampling.SerializeToString(deterministic=True),
        *(text.encode() for text in stop),
        struct.pack(f"<{len(stop_token_ids)}I", *stop_token_ids),
        struct.pack(f"<{len(numbers)}q", *numbers),
    )
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()


def check_same(drawn: Drawn, content: bytes) -> None:
    """`InvalidArgument` unless the request is the one that the token was made for."""
    if drawn.content != content:
        raise InvalidArgument(
            f"{_FIELD}: belongs to another request; prompt and settings must be the same", field=_FIELD
        )


def answers_so_far(
    resume: inference_pb2.Resume, n: int, max_tokens: int, spec: registry_pb2.ModelSpec
) -> list[inference_pb2.AnswerSoFar]:
    """What arrived of each of the `n` answers, by index; an empty one for those that had not begun.

    Raises `InvalidArgument` naming the field that does not fit, or when every answer is finished.
    """
    found: list[inference_pb2.AnswerSoFar | None] = [None] * n
    for number, answer in enumerate(resume.answers):
        field = f"resume.answers[{number}]"
        if answer.index >= n:
            raise InvalidArgument(
                f"{field}.index: {answer.index} is none of {n} answers", field=f"{field}.index"
            )
        if found[answer.index] is not None:
            raise InvalidArgument(
                f"{field}.index: answer {answer.index} is given twice", field=f"{field}.index"
            )
        if len(answer.token_ids) > max_tokens:
            raise InvalidArgument(
                f"{field}.token_ids: {len(answer.token_ids)} are more than the {max_tokens} that may be generated",
                field=f"{field}.token_ids",
            )
        check_token_ids(answer.token_ids, spec, f"{field}.token_ids")
        found[answer.index] = answer
    if all(answer is not None and answer.finished for answer in found):
        raise InvalidArgument("resume.answers: every answer is finished", field="resume.answers")
    return [
        inference_pb2.AnswerSoFar(index=index) if answer is None else answer
        for index, answer in enumerate(found)
    ]


def _revision(spec: registry_pb2.ModelSpec) -> bytes:
    return _short(f"{spec.revision}\0{spec.dtype}".encode())


def _short(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()
