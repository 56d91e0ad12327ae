"""The cache: answers kept by exact key, so that a question asked twice is computed once.

The story of an answer:

1. The router makes the key, a SHA-256 over tenant, model, revision, inputs and every parameter that changes the
   output, and asks `Lookup` before it dispatches anything (`servicer.py`).
2. The store (`stagemesh.entry_store`) finds the entry under (tenant, key), drops it if its time has passed, and moves it to the young end.
   What the memory lacks may be in the shared store behind it (`redis_store.py`).
3. On a miss the first who asks gets the lease to compute, and renews it; the others wait for the answer, and one of
   them takes over when the lease is given back or ends by time (`leases.py` decides, `single_flight.py` waits).
4. The router computes, and sends the whole answer to `Store` with the digest of key and value. A value that does not
   have that digest, is too large, or was invalidated while it was computed is rejected with a reason.
5. The store makes room within its byte budget by dropping what was not asked for the longest. What it keeps and drops
   is written behind it: to a file that survives a kill at any instant (`entry_file.py`, by the thread of
   `file_writer.py`), or to the shared store.
6. `Invalidate` drops entries by tenant, tags and prefix (`stagemesh.invalidation`), and is a record in etcd that every other cache
   hears of, one that is down when it starts (`validity.py`). A model that is deployed in another revision, or no more,
   takes its answers with it.

`__main__.py` starts the process: what lies behind is read and what was invalidated meanwhile is dropped before the
cache is announced in etcd, where routers find it. Routers pass a dead or wrong cache by; of several the next one in the
order of its key is asked.
"""
