"""Which sessions a head takes: every field of the opening is looked at before anything is reserved."""

from stagemesh.errors import InvalidArgument
from stagemesh.v1.stage_pb2 import OpenSession

from .replica import Replica

MAX_SESSION_TOKENS = 2**20


def check_opening(request: OpenSession, replica: Replica) -> None:
    """Refuse a session that the model or its route does not allow.

    Raises:
        InvalidArgument: naming the field.
    """
    model = replica.model
    if not model.generates:
        raise InvalidArgument("model: it does not generate text", field="model")
    if not request.route or request.route[0].replica_id != replica.replica_id:
        raise InvalidArgument("route: it does not begin at this replica", field="route")
    if not request.token_ids or not 1 <= request.prompt_tokens <= len(request.token_ids):
        raise InvalidArgument("token_ids: the prompt is empty", field="token_ids")
    if request.max_tokens < 1 or len(request.token_ids) - request.prompt_tokens >= request.max_tokens:
        raise InvalidArgument("max_tokens: nothing is left to generate", field="max_tokens")
    if request.held and (len(request.route) < 2 or len(request.token_ids) == request.prompt_tokens):
        raise InvalidArgument("held: no other replica can hold anything of this session", field="held")
    if request.prompt_tokens + request.max_tokens > MAX_SESSION_TOKENS:
        raise InvalidArgument(f"max_tokens: above {MAX_SESSION_TOKENS} in all", field="max_tokens")
    for name, ids in (
        ("token_ids", request.token_ids),
        ("logit_bias", request.sampling.logit_bias),
        ("held_ids", request.sampling.held_ids),
    ):
        if max(ids, default=0) >= model.vocab_size:
            raise InvalidArgument(f"{name}: an id is outside the vocabulary", field=name)
