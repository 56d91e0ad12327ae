"""What the three POST bodies may hold. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagemesh.errors import InvalidArgument

from ..validate import MAX_ANSWERS, MAX_BIAS, MAX_PENALTY, MAX_REPETITION_PENALTY

# They name the caller's user and ask for nothing.
_WITHOUT_EFFECT = ("user", "safety_identifier")
# Not supported: accepted only with the values that ask for nothing (null always does). `best_of` may also be `n`.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "dimensions": (),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": ({},),
    "prompt_cache_retention": ("in_memory", "in-memory"),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """`stream_options`."""

    include_usage: bool = False
    # Padding of events against traffic analysis: there is none either way.
    include_obfuscation: bool = False


class GenerationBody(_Strict):
    """What completions and chat have in common; the router checks ranges that depend on the model."""

    model: str
    max_tokens: _Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = None
    presence_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)] | None = None
    # JSON spells token ids as texts.
    logit_bias: dict[str, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]] | None = None
    # Beyond OpenAI's.
    repetition_penalty: Annotated[float, Field(gt=0, le=MAX_REPETITION_PENALTY)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default_factory=list)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    # A text, texts, token ids, or lists of token ids: see `to_generate.parse_prompts`.
    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TextPart(_Strict):
    """A content part; text is the only type."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class EmbeddingBody(_Strict):
    """`POST /v1/embeddings`."""

    model: str
    # A text, texts, token ids, or lists of token ids.
    input: Any
    encoding_format: Literal["float", "base64"] | None = None


class Document(_Strict):
    """A document to rank; text is all there is to it."""

    text: str


class RerankBody(_Strict):
    """`POST /v1/rerank`."""

    model: str
    query: str
    documents: list[str | Document]
    # All of them when left out, or when there are fewer.
    top_n: _Count | None = None
    return_documents: bool = False


class ClassifyBody(_Strict):
    """`POST /v1/classify`."""

    model: str
    input: str | list[str]


B = TypeVar("B", bound=_Strict)

# What a client sends back of an earlier answer's message.
_MESSAGE_NOTHING: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_calls": ([],),
}


def parse(kind: type[B], body: Mapping[str, Any]) -> B:
    """Return the checked body; raise `InvalidArgument` that names the first field at fault."""
    fields = dict(body)
    for name in _WITHOUT_EFFECT:
        if not isinstance(fields.pop(name, None), str | None):
            raise InvalidArgument(f"{name}: must be a text", field=name)
    if type(fields.get("best_of")) is int and fields["best_of"] == fields.get("n"):
        del fields["best_of"]
    fields = _refuse(fields, _NOTHING, kind, "")
    messages = fields.get("messages")
    if isinstance(messages, list):
        fields["messages"] = [
            _refuse(message, _MESSAGE_NOTHING, ChatMessage, f"messages[{index}].")
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first_fault(error) from None


def _refuse(
    fields: dict[str, Any], nothing: Mapping[str, tuple[Any, ...]], kind: type[_Strict], prefix: str
) -> dict[str, Any]:
    """Leave out unsupported fields that ask for nothing; raise `InvalidArgument` for those that ask."""
    kept = {}
    for name, value in fields.items():
        if name not in nothing or name in kind.model_fields:
            kept[name] = value
            continue
        asks = value is not None and not any(
            value == empty and isinstance(value, bool) == isinstance(empty, bool) for empty in nothing[name]
        )
        if asks:
            raise InvalidArgument(f"{prefix}{name}: not supported", field=f"{prefix}{name}")
    return kept


def _first_fault(error: ValidationError) -> InvalidArgument:
    # Of a union, the branch that came closest says the most: its location is the longest.
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]["loc"][0] if faults[0]["loc"] else ""
    fault = max((f for f in faults if f["loc"][:1] == (first,)), key=lambda f: len(f["loc"]))
    field = ""
    for part in fault["loc"]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part in ("str", "TextPart", "Document") or part.startswith("list["):
            continue  # pydantic's name of a union's branch
        else:
            field += f".{part}" if field else part
    if fault["type"] == "extra_forbidden":
        return InvalidArgument(f"{field}: unknown field", field=field)
    message = fault["msg"]
    return InvalidArgument(f"{field}: {message[:1].lower()}{message[1:]}", field=field)
