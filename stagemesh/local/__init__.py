"""A whole mesh on one machine: what `stagemesh serve` and `stagemesh demo` run, and the tests of whole meshes.

1. `ports` says which ports are free, before anything starts;
2. `etcd_server` starts a real etcd on loopback;
3. `launcher` starts each service as one of `processes`, which cannot outlive this one;
4. `mesh.LocalMesh` puts them together, restarts what dies, deploys a model and waits until it is ready;
5. leaving the mesh ends every process and removes the temp folder.
"""

from stagemesh.local.mesh import LocalMesh

__all__ = ["LocalMesh"]
