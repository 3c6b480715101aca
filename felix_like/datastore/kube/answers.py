"""What the API server's refusals mean: HTTP status or ERROR event -> the error with its sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.errors import (
    Forbidden,
    Garbage,
    Gone,
    KubeError,
    NotFound,
    Overloaded,
    Refused,
    Unauthorized,
)

LONGEST_WAIT = 60.0
"""Seconds that a Retry-After is followed at most."""


@dataclass(frozen=True, slots=True)
class Meant:
    """A request in RBAC's words (k8s.io/apiserver, RequestInfo)."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str

    @classmethod
    def of(cls, path: str, params: Mapping[str, str]) -> Meant:
        parts = path.strip("/").split("/")
        group = parts[1] if parts[0] == "apis" and len(parts) > 1 else ""
        rest = parts[3:] if parts[0] == "apis" else parts[2:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource, name = (rest[0] if rest else path), (rest[1] if len(rest) > 1 else "")
        verb = "get" if name else "watch" if params.get("watch") == "true" else "list"
        if not name:
            # By fieldSelector metadata.name RBAC's resourceNames can allow a list or a watch.
            for term in params.get("fieldSelector", "").split(","):
                if term.startswith("metadata.name="):
                    name = term.removeprefix("metadata.name=")
        return cls(verb, group, resource, namespace, name)

    def __str__(self) -> str:
        """ "list services", "watch secrets named bgp in namespace kube-system"."""
        named = f" named {self.name}" if self.name else ""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{named}{where}"

    @property
    def rule(self) -> str:
        """What RBAC lacks, as a rule is written. Every node asks for a Node of its own: no name for those."""
        names = f', resourceNames: ["{self.name}"]' if self.name and self.namespace else ""
        kind = f"a Role in namespace {self.namespace}" if self.namespace else "a ClusterRole"
        return (
            f'{kind} with apiGroups: ["{self.group}"], resources: ["{self.resource}"]{names}, '
            f'verbs: ["{self.verb}"]'
        )


def retry_after(header: str) -> float | None:
    """Seconds; None for what is no number (RFC 9110 allows a date, the API server sends none)."""
    if header.isascii() and header.isdigit() and len(header) < 10:
        return min(float(header), LONGEST_WAIT)
    return None


def status_error(
    code: int, body: bytes, path: str, params: Mapping[str, str], wait: float | None, source: str
) -> KubeError:
    """The error for an HTTP status that is not 200. `source`: of the credentials, for the operator."""
    return _error(code, _message(body), Meant.of(path, params), wait, source)


def error_of(event: Mapping[str, Any], path: str) -> KubeError | None:
    """The error that a watch event stands for; None: it is none. Also for an event that is no event."""
    kind, about = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(about, dict):
        return Garbage(f"the watch of {path} brought something that is no watch event")
    if kind != "ERROR":
        return None
    code, message = about.get("code"), about.get("message")
    return _error(
        code if isinstance(code, int) else 0,
        message if isinstance(message, str) else "",
        Meant.of(path, {"watch": "true"}),
        None,
        "our credentials",
    )


def _error(code: int, message: str, meant: Meant, wait: float | None, source: str) -> KubeError:
    said = f": {quoted(message, 200)}" if message else ""
    match code:
        case 401:
            return Unauthorized(f"the API server does not accept {source} (401)")
        case 403:
            return Forbidden(f"may not {meant} (403{said}); RBAC lacks {meant.rule}")
        case 404 if not meant.name:
            return NotFound(
                f"cannot {meant}: the server does not know that (404{said}); is it a Kubernetes API server?"
            )
        case 404:
            return NotFound(f"cannot {meant}: there is no such thing (404{said})")
        case 410:
            return Gone(f"cannot {meant} from where we were: too old (410{said})")
        case 429:
            return Overloaded(f"cannot {meant} now: the API server has too many requests (429{said})", wait)
        case _ if code >= 500:
            return Overloaded(f"cannot {meant} now: the API server failed ({code}{said})", wait)
    return Refused(f"cannot {meant}: refused ({code}{said})")


def _message(body: bytes) -> str:
    """Of a Status object; of anything else its first words."""
    try:
        status = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body[:200].decode("utf-8", "replace").strip()
    message = status.get("message") if isinstance(status, dict) else None
    return message if isinstance(message, str) else ""
