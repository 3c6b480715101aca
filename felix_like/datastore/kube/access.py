"""How to get at the Kubernetes API: a kubeconfig, a pod's service account, or not at all.

Nothing is imported or opened for it here: the files are read when a client connects, and again when the API
server no longer accepts what was in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts a pod's token, the cluster's authority and the namespace."""


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """Where the credentials are."""

    kubeconfig: Path | None
    """None: the service account of the pod that we are in."""
    service_account: Path = SERVICE_ACCOUNT
    host: str = ""
    port: str = ""
    """The API server as the kubelet tells it to a pod (KUBERNETES_SERVICE_HOST, _PORT)."""

    @property
    def source(self) -> str:
        """For the operator."""
        if self.kubeconfig is not None:
            return f"kubeconfig {self.kubeconfig}"
        return f"service account in {self.service_account}"


def find_access(environ: Mapping[str, str], *, service_account: Path = SERVICE_ACCOUNT) -> KubeAccess | None:
    """KUBECONFIG, else the service account where a token is mounted, else None: no Kubernetes here.

    A KUBECONFIG that is set and wrong does not fall back: the client's errors say what is wrong with it.
    """
    named = environ.get("KUBECONFIG", "").strip()
    if named:
        return KubeAccess(Path(named))
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    if host and port and (service_account / "token").exists():
        return KubeAccess(None, service_account, host, port)
    return None
