"""Answers before dispatch: which requests the cache may answer, and how its answers are asked for, checked and stored.

1. `controls` reads what the caller allows; `key` digests everything that changes the output.
2. `use` and `choice` decide which of the caches of the mesh is asked.
3. `client` asks it; `believe` checks what comes, so that a wrong answer is a miss.
4. `flight` holds the lease to compute a miss, so that identical requests are computed once.
"""
