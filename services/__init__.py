"""The four services; installed as `stagemesh.services`.

Importing one sets how gRPC waits for sockets in this process. By default a thread of gRPC's event engine reads a
message and wakes the thread of the completion queue, which wakes the event loop; without that engine the second
thread reads for itself, and a message on an open stream takes half as long. gRPC reads the setting when it
is imported, which is after this. The names are of the releases below; others may not know them, and would say so.
"""

import os
from importlib.metadata import version

_KNOWN_TO = ("1.85.",)

if version("grpcio").startswith(_KNOWN_TO):
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
