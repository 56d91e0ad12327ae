"""What a caller wants of the cache, as the text that HTTP has for it. Pure; the router says which values are valid."""

from stagemesh.errors import InvalidArgument
from stagemesh.v1 import inference_pb2

_FLAGS = {
    "no-cache": "no_cache",
    "no-store": "no_store",
    "no-semantic": "no_semantic",
    "sampled": "sampled",
}
_SECONDS = {"ttl": "ttl_s", "max-age": "max_age_s"}
_REPLAYS = {
    "chunks": inference_pb2.CACHE_REPLAY_CHUNKS,
    "whole": inference_pb2.CACHE_REPLAY_WHOLE,
}
_ALL = (*_FLAGS, *_SECONDS, "namespace", "tag", "replay")


def cache_control_of(text: str, field: str = "cache_control") -> inference_pb2.CacheControl:
    """The message for `no-cache, no-store, no-semantic, sampled, ttl=S, max-age=S, namespace=N, tag=T, replay=whole`.

    Any of them, with commas between them; `tag` may come several times. Raises `InvalidArgument` that names what is
    not one of them, or not said as it should be.
    """
    control = inference_pb2.CacheControl()
    if not isinstance(text, str):
        raise InvalidArgument(f"{field}: must be a text, not {type(text).__name__}", field=field)
    for part in text.split(","):
        name, given, value = (piece.strip() for piece in part.partition("="))
        name, value = name.lower(), value.strip('"')
        if not name and not given:
            continue
        if name in _FLAGS and not given:
            setattr(control, _FLAGS[name], True)
        elif name in _SECONDS and value.isascii() and value.isdecimal() and int(value) < 2**32:
            setattr(control, _SECONDS[name], int(value))
        elif name == "namespace" and value:
            control.namespace = value
        elif name == "tag" and value:
            control.tags.append(value)
        elif name == "replay" and value in _REPLAYS:
            control.replay = _REPLAYS[value]
        else:
            raise InvalidArgument(f"{field}: {_fault(name, value, bool(given))}", field=field)
    return control


def _fault(name: str, value: str, given: bool) -> str:
    if name in _FLAGS:
        return f"{name} takes no value"
    if name in _SECONDS:
        return f"{name} must be whole seconds, as in {name}=60, not {value[:40]!r}"
    if name == "replay":
        return f"replay must be chunks or whole, not {value[:40]!r}"
    if name in _ALL:
        return f"{name} needs a name, as in {name}=docs" + ("" if given else "; it has none")
    return f"there is no control {name[:40]!r}; there are {', '.join(_ALL)}"
