"""What the fake Kubernetes API server holds: objects, their history, selectors, and who may see what."""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
Kind = tuple[str, str]
"""API group and plural: ("", "services")."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource type that is served."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


SERVED = (
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("", "v1", "pods", "Pod"),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
    Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
)
BY_KIND = {(one.api_version, one.kind): one for one in SERVED}


@dataclass(frozen=True, slots=True)
class Rule:
    """RBAC: what is allowed. `namespace` "": everywhere, as a ClusterRole with a ClusterRoleBinding."""

    verbs: frozenset[str]
    groups: frozenset[str]
    resources: frozenset[str]
    names: frozenset[str] = frozenset()
    """resourceNames; none: all."""
    namespace: str = ""

    def allows(self, verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        def among(allowed: frozenset[str], one: str) -> bool:
            return "*" in allowed or one in allowed

        return (
            among(self.verbs, verb)
            and among(self.groups, group)
            and among(self.resources, resource)
            and (not self.names or name in self.names)
            and self.namespace in ("", namespace)
        )


def rules_of(documents: Iterable[Mapping[str, Any]]) -> list[Rule]:
    """The rules of ClusterRoles (bound in the whole cluster) and of Roles (in their namespace)."""
    found = []
    for document in documents:
        if document["kind"] not in ("ClusterRole", "Role"):
            continue
        namespace = document["metadata"].get("namespace", "") if document["kind"] == "Role" else ""
        for rule in document["rules"]:
            parts = (frozenset(rule.get(part, ())) for part in ("verbs", "apiGroups", "resources"))
            found.append(Rule(*parts, frozenset(rule.get("resourceNames", ())), namespace))
    return found


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the history: what an object became and what it was before."""

    version: int
    key: tuple[str, str]
    """Namespace and name."""
    before: Object | None
    after: Object | None


@dataclass
class Store:
    """All objects with one counter of resource versions, and the history since the last compaction."""

    version: int = 1000
    compacted: int = 0
    """Watches from before this version are told 410."""
    objects: dict[Kind, dict[tuple[str, str], Object]] = field(default_factory=dict)
    history: dict[Kind, list[Event]] = field(default_factory=dict)

    def put(self, obj: Object) -> Object:
        """Create or replace; uid and creationTimestamp are kept, resourceVersion is new."""
        resource = resource_of(obj)
        kind, key = (resource.group, resource.plural), key_of(obj)
        before = self.objects.setdefault(kind, {}).get(key)
        after = copy.deepcopy(obj)
        self.version += 1
        metadata = after.setdefault("metadata", {})
        kept = (before or {}).get("metadata", {})
        metadata["uid"] = kept.get("uid") or metadata.get("uid") or str(uuid.uuid4())
        metadata.setdefault("creationTimestamp", kept.get("creationTimestamp", "2026-01-10T09:00:00Z"))
        metadata["resourceVersion"] = str(self.version)
        self.objects[kind][key] = after
        self._note(kind, Event(self.version, key, before, after))
        return copy.deepcopy(after)

    def delete(self, kind: Kind, key: tuple[str, str]) -> None:
        """Raises KeyError when there is none."""
        before = self.objects.get(kind, {}).pop(key)
        self.version += 1
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._note(kind, Event(self.version, key, last, None))

    def _note(self, kind: Kind, event: Event) -> None:
        self.history.setdefault(kind, []).append(event)

    def compact(self) -> None:
        """Forget the history up to now."""
        self.compacted = self.version
        self.history.clear()

    def listed(self, kind: Kind, wanted: Callable[[Object], bool]) -> list[Object]:
        """In etcd's order of keys."""
        held = self.objects.get(kind, {})
        return [held[key] for key in sorted(held) if wanted(held[key])]

    def since(self, kind: Kind, version: int) -> list[Event]:
        return [event for event in self.history.get(kind, ()) if event.version > version]


def resource_of(obj: Mapping[str, Any]) -> Resource:
    try:
        return BY_KIND[obj["apiVersion"], obj["kind"]]
    except KeyError:
        raise ValueError(
            f"the fake API server does not serve {obj.get('apiVersion')} {obj.get('kind')}"
        ) from None


def key_of(obj: Mapping[str, Any]) -> tuple[str, str]:
    metadata = obj["metadata"]
    return (metadata.get("namespace", "default") if resource_of(obj).namespaced else "", metadata["name"])


def field_matcher(selector: str) -> Callable[[Object], bool]:
    """metadata.name=x,spec.nodeName!=y: the fields that the served resources can be selected by."""
    terms = [re.fullmatch(r"([\w.]+)(==|!=|=)(.*)", term) for term in selector.split(",") if term]
    if not all(terms):
        raise ValueError(f"field selector {selector!r}")

    def matches(obj: Object) -> bool:
        for term in terms:
            assert term is not None
            value: Any = obj
            for part in term[1].split("."):
                value = value.get(part, "") if isinstance(value, dict) else ""
            if (str(value) == term[3]) == (term[2] == "!="):
                return False
        return True

    return matches


def label_matcher(selector: str) -> Callable[[Object], bool]:
    """a=b,c!=d,e,!f,g in (h,i),j notin (k)."""
    terms = [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]

    def matches(obj: Object) -> bool:
        labels = obj.get("metadata", {}).get("labels") or {}
        return all(_label_term(term, labels) for term in terms)

    return matches


def _label_term(term: str, labels: Mapping[str, str]) -> bool:
    if found := re.fullmatch(r"(\S+)\s+(in|notin)\s+\((.*)\)", term):
        values = [value.strip() for value in found[3].split(",")]
        return (labels.get(found[1]) in values) == (found[2] == "in")
    if found := re.fullmatch(r"([^!=]+)(==|!=|=)(.*)", term):
        return (labels.get(found[1]) == found[3]) == (found[2] != "!=")
    return term[1:] not in labels if term.startswith("!") else term in labels
