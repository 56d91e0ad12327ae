"""The stage service: a node that hosts partitions and relays activations between them.

The way of a session through one route, with the file that does each part:

1. `node.py` announces the node in etcd under a lease, watches what it is told to load, and publishes each
   replica as READY once `canary.py` went through its real compute path. `partition/` builds and loads it.
2. The router opens the session at the head: `servicer.py` -> `head.py`, which reserves KV (`partition/kv.py`)
   and gives the session to `schedule.py`, the continuous batching that decides which steps travel together.
3. `engine.py` runs a pass on the partition's one compute thread.
4. `replica.py` splits the result by next hop, and `link.py` carries each frame there on the one long-lived
   stream to that replica, within the credits it was given.
5. On a later stage `relay.py` receives the frame and `replica.py` runs steps 3 and 4 again.
6. The last stage samples (`sampler.py`) and sends token ids straight back to the head, whose `head.py` hands
   them to the waiting RPC and to the schedule for the next step.
7. When the session is over, a close travels along the route and every stage frees what it held. What breaks on
   the way comes back upstream as feedback, and ends in the head as the session's error.
8. When a neighbour is lost, `recovery.py` holds its sessions, and builds another replica again from `journal.py`.
"""
