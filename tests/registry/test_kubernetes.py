"""Scaling through the Kubernetes API, against a real HTTPS server that speaks the two calls."""

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from stagemesh.services.registry.kubernetes import Workload, workload_of
from stagemesh.services.registry.node_pool import KubernetesPool, last_empty
from stagemesh.services.registry.scaling.packing import Box, Piece

from stagemesh.errors import ConfigError, PermissionDenied, Unavailable

TOKEN = "a-token"


class Api:
    """What the cluster knows."""

    def __init__(self) -> None:
        self.spec: dict[str, Any] = {"replicas": 3}
        self.calls: list[tuple[str, str, Any]] = []
        self.answer: bytes | None = None


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("account")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", folder / "key.pem", "-out", folder / "ca.crt",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "namespace").write_text("stagemesh")
    return folder


@pytest.fixture
def api(account: Path) -> Iterator[tuple[Api, Workload]]:
    known = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve(None)

        def do_PATCH(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, body: Any) -> None:
            known.calls.append((self.command, self.path, body))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self._say(401, {"message": "Unauthorized"})
            if self.path != "/apis/apps/v1/namespaces/stagemesh/statefulsets/stage/scale":
                return self._say(403, {"message": 'statefulsets "other" is forbidden'})
            if body is not None:
                if self.headers["Content-Type"] != "application/merge-patch+json":
                    return self._say(415, {"message": "unsupported"})
                known.spec |= body["spec"]
            # As the API does, zero is left out.
            spec = {name: value for name, value in known.spec.items() if value}
            self._say(200, {"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": spec})

        def _say(self, status: int, body: Any) -> None:
            words = known.answer if known.answer is not None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", account / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
    yield known, workload_of("statefulset/stage", environment, account)
    server.shutdown()
    server.server_close()
    thread.join(5)


async def test_the_scale_is_read_and_patched_with_the_pods_own_account(api: tuple[Api, Workload]) -> None:
    known, workload = api
    pool = KubernetesPool(workload)
    assert await pool.size() == 3
    await pool.resize(5, "two replicas have no room", 1)
    assert known.spec == {"replicas": 5}
    assert [(method, body) for method, _, body in known.calls] == [
        ("GET", None),
        ("PATCH", {"spec": {"replicas": 5}}),
    ]
    assert workload.scale(0) == 0
    assert workload.replicas() == 0


def test_what_the_role_does_not_allow_is_said_in_the_apis_words(
    api: tuple[Api, Workload], account: Path, tmp_path: Path
) -> None:
    _, workload = api
    other = Workload(workload.kind, "other", workload.api, account)
    with pytest.raises(PermissionDenied, match=r"403 for statefulset/other: .*forbidden"):
        other.scale(2)
    for name in ("ca.crt", "namespace"):
        (tmp_path / name).write_bytes((account / name).read_bytes())
    (tmp_path / "token").write_text("an old one")
    with pytest.raises(PermissionDenied, match="401"):
        Workload(workload.kind, workload.name, workload.api, tmp_path).replicas()
    # It is rotated: the next call reads it anew.
    (tmp_path / "token").write_text(TOKEN)
    assert Workload(workload.kind, workload.name, workload.api, tmp_path).replicas() == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind": "Status", "spec": {}}',
        b'{"kind": "Scale", "spec": 3}',
        b'{"kind": "Scale", "spec": {"replicas": "many"}}',
    ],
    ids=["empty", "list", "nothing", "status", "number", "words"],
)
def test_an_answer_that_is_no_scale_is_no_number(api: tuple[Api, Workload], answer: bytes) -> None:
    known, workload = api
    known.answer = answer
    with pytest.raises(Unavailable):
        workload.replicas()


def test_a_stranger_in_the_apis_place_is_not_given_the_token(
    api: tuple[Api, Workload], account: Path, tmp_path: Path
) -> None:
    known, workload = api
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "ca.crt",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    for name in ("token", "namespace"):
        (tmp_path / name).write_text((account / name).read_text())
    with pytest.raises(Unavailable, match="does not answer"):
        Workload(workload.kind, workload.name, workload.api, tmp_path).replicas()
    assert known.calls == []


def test_without_an_account_or_a_cluster_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="service account cannot be read"):
        Workload("deployment", "stage", "https://127.0.0.1:1", tmp_path).replicas()
    with pytest.raises(ConfigError, match="no pod of a Kubernetes cluster"):
        workload_of("statefulset/stage", {})
    for wrong in ("stage", "daemonset/stage", "statefulset/", "statefulset/../x", "statefulset/UPPER"):
        with pytest.raises(ConfigError, match="neither statefulset/NAME nor deployment/NAME"):
            workload_of(wrong, {"KUBERNETES_SERVICE_HOST": "h"})
    assert workload_of("deployment/a", {"KUBERNETES_SERVICE_HOST": "fd00::1"}).api == "https://[fd00::1]:443"


def test_only_empty_nodes_with_the_last_names_may_go() -> None:
    def node(node_id: str, used: bool) -> Box:
        pieces = (Piece("r", "m", 0, 1, 0.0, True),) if used else ()
        return Box(node_id, 10, pieces, 10, 0.0)

    assert last_empty([node("s-10", False), node("s-9", True), node("s-2", False), node("s-11", False)]) == 2
    assert last_empty([node("s-1", True), node("s-0", False)]) == 0
    assert last_empty([]) == 0
