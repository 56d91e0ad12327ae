"""The cache: answers kept by exact key, so that a question asked twice is computed once.

The story of an answer:

1. The router makes the key, a SHA-256 over model, revision, inputs and every parameter that changes the output,
   and asks `Lookup` before it dispatches anything (`servicer.py`).
2. `store.py` finds the entry under (tenant, key), drops it if its time has passed, and moves it to the young end.
3. On a miss the router computes, and sends the whole answer to `Store` with its digest. A value that does not
   have that digest, or is too large, is rejected with a reason.
4. The store makes room within its byte budget by dropping what was not asked for the longest.
5. `Invalidate` drops entries by tag when a model changes.

`__main__.py` starts the process: it announces the cache in etcd, where routers find it. A cache that dies takes
its entries with it and nothing else; routers pass it by.
"""
