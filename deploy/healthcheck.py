"""Ask a gRPC server on this host whether it serves: `healthcheck.py PORT`; exit status 0 means yes.

For container engines without a gRPC probe of their own (Compose); Kubernetes uses its native one.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(argv: list[str]) -> int:
    """Return 0 when the server answers SERVING within three seconds, else 1 with one line on stderr."""
    if len(argv) != 1 or not argv[0].isdigit():
        print("usage: healthcheck.py PORT", file=sys.stderr)
        return 2
    with grpc.insecure_channel(f"127.0.0.1:{argv[0]}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
        except grpc.RpcError as error:
            print(f"port {argv[0]}: {error.code().name}", file=sys.stderr)
            return 1
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        print(f"port {argv[0]}: NOT_SERVING", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
