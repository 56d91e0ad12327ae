"""What of a request may bear on the choice of its replicas. Pure."""

from collections.abc import Sequence

from stagemesh.errors import InvalidArgument

from .context import RequestContext
from .policies import NOTHING_ASKED, Ask

SESSION_HEADER = "x-stagemesh-session"
"""Names what belongs together, a conversation say; used by the policy session_affinity."""
ZONE_HEADER = "x-stagemesh-zone"
"""Only replicas of this zone may be used."""
LONGEST = 256


def ask_of(ctx: RequestContext, token_ids: Sequence[int] = (), new_tokens: int = 0) -> Ask:
    """The request's headers, its prompt and the length of its answer as policies take them; raises `InvalidArgument` naming the header."""
    session, zone = ctx.metadata.get(SESSION_HEADER, ""), ctx.metadata.get(ZONE_HEADER, "")
    for name, value in ((SESSION_HEADER, session), (ZONE_HEADER, zone)):
        if len(value) > LONGEST:
            raise InvalidArgument(f"{name}: longer than {LONGEST} characters", field=name)
    if not (session or zone or len(token_ids)):
        return NOTHING_ASKED
    return Ask(session, token_ids, zone, new_tokens)
