"""The registry: the control plane. Losing it never stops traffic; of several, one leads.

The way of a deployment:

1. `__main__` reads the configuration, connects to etcd, and starts the server and the tasks below.
2. `servicer.Deploy` has `desired` check the request, reads the checkpoint's headers in a thread
   (`stagemesh.checkpoint`), has `cuts` even out the partitions by bytes, and writes the `ModelSpec` to etcd
   with compare-and-put. `Scale` and `Undeploy` change or remove that one record.
3. `mirror` follows everything in etcd with one watch: models, nodes, assignments, replicas.
4. `controller` wakes at every change and once a second. While `leadership` holds the leader key under its
   lease, it writes what the plan says; other registries make the same plan and only report it.
5. `assign.decide` (pure; `placement` chooses the node) compares the `world` with what is wanted, on a `board`
   of who holds what, and returns `Assign` and `Unassign` decisions with their reasons, and what is pending
   with the numbers.
6. The node watches its assignments, loads the partition, and announces a replica under its lease. When the
   node dies the records go; after a grace of one lease time its partitions are given to other nodes.
7. `servicer.ListModels` answers from the mirror: specs, replicas, and what no node can take.
"""
