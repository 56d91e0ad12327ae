"""What makes a cold start short: loaded partitions that stay, and processes that have everything imported.

1. `keep.py` (pure) says which partitions stay when memory is short; `kept.py` holds them for a node: what `hosting.py`
   unloads goes there, and a new assignment of the same partition takes it out again.
2. `fork_server.py` is a process with one thread in which everything is imported, and done that every start needs again
   (`imports.py`); it forks stage processes on demand. `lone.py` is the same for a node that nobody supervises.
3. `packed_store.py` holds packed partitions as files, so that the next load maps one; `saving.py` writes them beside serving.
"""
