"""The router: one door for clients, and the balance between replicas.

The story of a generation, with the file that tells each step:

1. A client calls gRPC (`servicer`, `oip/`) or HTTP (`http/`); both open a `RequestContext` (`context`):
   request id, tenant from the API key (`auth`), deadline.
2. `core.RouterCore.generate` checks every field (`validate`): bad input stops here and names the field.
3. The request is admitted, waits in a bounded queue, or is refused early (`admission/`).
4. The prompt or chat becomes token ids (`text/`), and its length is checked against the context (`prepare`).
5. A deterministic request is looked up in the cache (`cache/`). A hit is replayed; a cache that is
   dead, slow or wrong is passed by.
6. A replica per stage is chosen (`routing`, `policies/`) among those in the local view of the mesh (`membership`,
   fed by `membership_watch`) by what is known of their load (`loads`).
7. The session is opened at the route's head and its tokens stream back (`dispatch`); when the route breaks
   before the first token, one other route is tried (`generate`).
8. Tokens become text, never half a character, until a stop string (`text/`, `generate`).
9. The finished answer is stored in the cache, the route's in-flight counts go down, metrics and the trace are
   written (`telemetry`).

A stateless inference (`infer`) goes the same way, but its batch is cut into ragged micro-batches that travel over
several routes at once and are put back in order (`scatter`).
"""
