"""The scale of one workload of a Kubernetes cluster, through its API.

Two calls, so no client library: with the pod's own service account (token and authority are read anew each time, since they are rotated)
the `scale` subresource is read and patched. It needs the role in deploy/kubernetes/overlays/autoscaling.
"""

import json
import os
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagemesh.errors import ConfigError, PermissionDenied, Unavailable

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_KINDS = {"deployment": "deployments", "statefulset": "statefulsets"}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TIMEOUT_S = 5.0
_MOST_BYTES = 2**20
_MOST_WORDS = 200


@dataclass(frozen=True)
class Workload:
    """A `deployment` or a `statefulset`, and where its API is.

    Args:
        kind: in lower case.
        name: of the workload.
        api: "https://host:port".
        account: folder with token, ca.crt and namespace.
    """

    kind: str
    name: str
    api: str
    account: Path = ACCOUNT

    def replicas(self) -> int:
        """How many pods were asked for. Blocking; raises `Unavailable` and `PermissionDenied`."""
        return _replicas(self._call("GET", None))

    def scale(self, replicas: int) -> int:
        """Ask for so many pods; what the API says is asked for now. Blocking; raises as `replicas` does."""
        return _replicas(self._call("PATCH", {"spec": {"replicas": replicas}}))

    def _call(self, method: str, body: dict[str, Any] | None) -> Any:
        try:
            token = (self.account / "token").read_text().strip()
            namespace = (self.account / "namespace").read_text().strip()
            authority = self.account / "ca.crt"
            context = (
                ssl.create_default_context(cafile=str(authority)) if self.api.startswith("https") else None
            )
        except OSError as error:
            raise Unavailable(f"the pod's service account cannot be read: {error.strerror}") from None
        url = f"{self.api}/apis/apps/v1/namespaces/{namespace}/{_KINDS[self.kind]}/{self.name}/scale"
        # The scheme is this file's own, or a test's.
        request = urllib.request.Request(  # noqa: S310
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Content-Type": "application/merge-patch+json",
            },
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as response:
                return json.loads(response.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            words = f"Kubernetes answered {error.code} for {self.kind}/{self.name}: {_message(error)}"
            raise (PermissionDenied if error.code in (401, 403) else Unavailable)(words) from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"the Kubernetes API does not answer: {error}") from None


def workload_of(text: str, environment: dict[str, str] | None = None, account: Path = ACCOUNT) -> Workload:
    """`statefulset/NAME` or `deployment/NAME`, in the cluster that this pod runs in. Raises `ConfigError`."""
    environment = dict(os.environ) if environment is None else environment
    kind, _, name = text.partition("/")
    if kind not in _KINDS or not _NAME.fullmatch(name):
        raise ConfigError(f"node_pool: {text[:80]!r} is neither statefulset/NAME nor deployment/NAME")
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", "443"),
    )
    if not host:
        raise ConfigError(
            "node_pool: this is no pod of a Kubernetes cluster (KUBERNETES_SERVICE_HOST is not set)"
        )
    return Workload(kind, name, f"https://{f'[{host}]' if ':' in host else host}:{port}", account)


def _replicas(scale: Any) -> int:
    spec = scale.get("spec") if isinstance(scale, dict) and scale.get("kind") == "Scale" else None
    # Zero is left out of the JSON.
    replicas = spec.get("replicas", 0) if isinstance(spec, dict) else None
    if not isinstance(replicas, int) or isinstance(replicas, bool):
        raise Unavailable("Kubernetes answered with something that is no scale")
    return replicas


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_MOST_BYTES))["message"])[:_MOST_WORDS]
    except (ValueError, KeyError, TypeError, OSError):
        return error.reason[:_MOST_WORDS] if isinstance(error.reason, str) else ""
