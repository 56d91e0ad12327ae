"""How many replicas each stage has, and which nodes they share. Pure: no I/O, seconds come in on the caller's clock.

The registry uses these classes every few seconds, a simulator uses the same ones on virtual time. A step costs O(replicas).

1. `reports.Reports` keeps what nodes and routers told last (`take_replica`, `take_model`) and sums it up:
   `Reports.load(model, limits, scale, ...) -> ModelLoad`, one `StageLoad` for each stage. A simulator may make `ModelLoad`s itself.
2. `limits.Limits` is what one model may have and what it aims at; `limits.limits_of(spec.scaling, Defaults())` makes it, and
   `limits.check_scaling` refuses what makes no sense, naming the field.
3. `autoscaler.Autoscaler(Patience()).decide(loads: Sequence[ModelLoad], now: float) -> list[Decision]` looks at all models at once.
   A `Decision` has `kind` ("scale.up", "scale.down", "scale.sleep", "scale.wake", "scale.limit"), `model`, `replicas` (per stage;
   all 0: it sleeps), `expected` (what it was decided from), `reason` in words and `numbers`. Nothing is remembered of a decision that was not
   carried out: the next `ModelLoad.wanted` says what holds.
4. `bottleneck` finds the stage that limits a model, and predicts what one replica less would do.
5. `packing.consolidate(nodes, ...) -> list[Move]` empties the least used nodes onto others, as a bin packing; `packing.Consolidator`
   adds the patience.
6. `capacity.Capacity` says how many nodes there should be, for whoever can start and stop them.
"""
