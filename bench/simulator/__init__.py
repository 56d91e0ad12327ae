"""A mesh in virtual time, made of the production's own decisions; see `bench/simulate.py`.

1. `fleet.py`: nodes of several kinds, models of several sizes, each cut by the planner (`stagemesh.planning`).
2. `day.py`: a day of requests out of the recorded hours.
3. `mesh.py`: the event loop. Replicas are chosen by the router's `Loads` and `P2cEwma`; nodes by the registry's `Board` and `choose_node`;
   replicas are added, removed, put to sleep and woken by its `Autoscaler` and `Preloader`.
4. `stage.py`: how long a replica computes, what waits for it.
5. `growth.py`: what records cost etcd, watchers and routers, from measurements of the real ones.
"""
