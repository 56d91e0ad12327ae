"""What a caller wants of the cache: from headers or metadata, and from the request's own message. Pure.

`Cache-Control` is HTTP's: `no-cache`, `no-store`, `max-age=S`; and with ours, `no-semantic`, `ttl=S`, `namespace=NAME`. The same and
more can be said by headers of our own, `x-stagemesh-cache-NAME`. A control that is not known is refused by its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from google.protobuf.unknown_fields import UnknownFieldSet

from stagemesh.errors import InvalidArgument
from stagemesh.v1 import inference_pb2

PREFIX = "x-stagemesh-cache-"
MAX_SECONDS = 10 * 365 * 86400
MAX_TAGS = 8
_NAME = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,128}")
_FLAGS = {
    "no-cache": "no_cache",
    "no-store": "no_store",
    "no-semantic": "no_semantic",
    "sampled": "sampled",
}
# A proxy's or a browser's, and nothing is asked of us by them.
_WITHOUT_EFFECT = ("no-transform", "max-stale", "stale-if-error")
_TRUE = {"1": True, "true": True, "0": False, "false": False}

Replay = Literal["", "chunks", "whole"]
_REPLAYS: dict[int, Replay] = {0: "", 1: "chunks", 2: "whole"}


@dataclass(frozen=True, slots=True)
class CacheControls:
    """`ttl_s` 0 is the model's own; `max_age_s` None is any age; `replay` "" is the router's own.

    `no_cache` does not look up, `unstored` does not store, and `no_store` does neither; `no_semantic` wants no answer that
    was given to another question.
    """

    no_cache: bool = False
    no_store: bool = False
    unstored: bool = False
    ttl_s: int = 0
    max_age_s: int | None = None
    namespace: str = ""
    tags: tuple[str, ...] = ()
    sampled: bool = False
    replay: Replay = ""
    no_semantic: bool = False

    @property
    def lookup(self) -> bool:
        """Whether a kept answer may be given."""
        return not self.no_cache and not self.no_store

    @property
    def store(self) -> bool:
        """Whether the answer may be kept."""
        return not self.no_store and not self.unstored


NONE = CacheControls()
# By (no look-up, no storing), where nothing else is said: nearly every request.
_PLAIN = {
    (False, False): NONE,
    (False, True): CacheControls(unstored=True),
    (True, False): CacheControls(no_cache=True),
    (True, True): CacheControls(no_cache=True, unstored=True),
}


def controls_of(
    metadata: Mapping[str, str],
    request: inference_pb2.GenerateRequest | inference_pb2.InferRequest | inference_pb2.EmbedRequest,
) -> CacheControls:
    """The controls of a request; raises `InvalidArgument` that names the header, directive or field."""
    controls = _of_headers(metadata)
    if not isinstance(request, inference_pb2.EmbedRequest):
        if controls is NONE:
            controls = _PLAIN[request.cache_no_lookup, request.cache_no_store]
        elif request.cache_no_lookup or request.cache_no_store:
            no_cache = controls.no_cache or request.cache_no_lookup
            controls = replace(
                controls, no_cache=no_cache, unstored=controls.unstored or request.cache_no_store
            )
    if request.HasField("cache_control"):
        controls = _of_message(controls, request.cache_control)
    return controls


def _of_headers(metadata: Mapping[str, str]) -> CacheControls:
    # Most requests have none of these; `x-stagemesh-cache` alone is what an answer says.
    own = [name for name in metadata if name.startswith(PREFIX)]
    standard = metadata.get("cache-control", "")
    if not own and not standard:
        return NONE
    controls = NONE
    for part in standard.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name and name.lower() not in _WITHOUT_EFFECT:
            controls = _with(controls, name.lower(), value.strip('"'), "cache-control")
    for header in own:
        controls = _with(controls, header.removeprefix(PREFIX), metadata[header], header)
    return controls


def _with(controls: CacheControls, name: str, value: str, where: str) -> CacheControls:
    own = where != "cache-control"
    if name in _FLAGS and (own or name != "sampled"):
        if not own and not value:
            value = "true"
        if value.lower() not in _TRUE:
            raise InvalidArgument(f"{where}: {name} must be true or false, not {value[:40]!r}", field=where)
        flag: dict[str, Any] = {_FLAGS[name]: _TRUE[value.lower()]}
        return replace(controls, **flag)
    if name == "ttl":
        return replace(controls, ttl_s=_seconds(value, 1, name, where))
    if name == "max-age":
        return replace(controls, max_age_s=_seconds(value, 0, name, where))
    if name == "namespace":
        return replace(controls, namespace=_name(value, name, where))
    if own and name == "tags":
        return replace(controls, tags=_tags([each.strip() for each in value.split(",")], where))
    if own and name == "replay":
        if value not in ("chunks", "whole"):
            raise InvalidArgument(f"{where}: must be chunks or whole, not {value[:40]!r}", field=where)
        return replace(controls, replay=value)  # type: ignore[arg-type]
    raise InvalidArgument(
        f"{where}: there is no control {name[:40]!r} of the cache"
        + ("" if own else "; there are no-cache, no-store, no-semantic, max-age, ttl and namespace"),
        field=where,
    )


def _of_message(controls: CacheControls, given: inference_pb2.CacheControl) -> CacheControls:
    where = "cache_control"
    unknown = UnknownFieldSet(given)
    if len(unknown):
        number = unknown[0].field_number
        raise InvalidArgument(f"{where}: there is no control with the number {number}", field=where)
    if given.HasField("ttl_s"):
        field = f"{where}.ttl_s"
        controls = replace(controls, ttl_s=_seconds(str(given.ttl_s), 1, "ttl_s", field))
    if given.HasField("max_age_s"):
        field = f"{where}.max_age_s"
        controls = replace(controls, max_age_s=_seconds(str(given.max_age_s), 0, "max_age_s", field))
    if given.namespace:
        field = f"{where}.namespace"
        controls = replace(controls, namespace=_name(given.namespace, "namespace", field))
    if given.tags:
        controls = replace(controls, tags=_tags(list(given.tags), f"{where}.tags"))
    if given.replay:
        if given.replay not in _REPLAYS:
            raise InvalidArgument(f"{where}.replay: there is no {given.replay}", field=f"{where}.replay")
        controls = replace(controls, replay=_REPLAYS[given.replay])
    return replace(
        controls,
        no_cache=controls.no_cache or given.no_cache,
        no_store=controls.no_store or given.no_store,
        sampled=controls.sampled or given.sampled,
        no_semantic=controls.no_semantic or given.no_semantic,
    )


def _seconds(value: str, least: int, name: str, where: str) -> int:
    if (
        not value.isascii()
        or not value.isdecimal()
        or len(value) > 10
        or not least <= int(value) <= MAX_SECONDS
    ):
        raise InvalidArgument(
            f"{where}: {name} must be {least} to {MAX_SECONDS} whole seconds, not {value[:40]!r}", field=where
        )
    return int(value)


def _name(value: str, name: str, where: str) -> str:
    if not _NAME.fullmatch(value):
        raise InvalidArgument(
            f"{where}: {name} must have 1 to 128 visible ASCII characters without a comma", field=where
        )
    return value


def _tags(values: list[str], where: str) -> tuple[str, ...]:
    if len(values) > MAX_TAGS:
        raise InvalidArgument(f"{where}: at most {MAX_TAGS} tags", field=where)
    return tuple(sorted({_name(value, "a tag", where) for value in values}))
