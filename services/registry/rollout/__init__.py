"""A candidate beside what is deployed: another revision, or other cuts of the same weights. One mechanism for both.

The candidate lies in the model's own record (`ModelSpec.rollout`), so every leader knows all that there is to know, and
that it takes the model's place is one compare-and-put:

1. `begin.deployed` turns a request into a rollout where something serves that must not stop (pure);
2. `assign` gives both specs replicas, `machine.advance` (pure) sends the candidate a share of the new sessions once every
   stage of it serves, and raises the share step by step;
3. routers choose by the share, keep a session on the revision on which it began, and count how each revision does;
   `trials.Trials` gathers that, `judge` (pure) compares;
4. a candidate that is worse is taken back; else sessions on the old revision come to their end, and the candidate becomes
   the model; what nobody wants any more is removed as every stale replica is;
5. `run.Rollouts` writes each step; it needs no more than the record, so the next leader goes on where one stopped.

`drift` (pure) and `recut` decide when other cuts pay.
"""
