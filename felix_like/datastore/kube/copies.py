"""What etcd should hold because of what Kubernetes holds: one document each, and the part of it that is ours.

Pure: documents in, documents out. It lives here, and not in calc, because it is about documents as they are
stored, as `codec` and `cas` are; calc knows values only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from felix_like.datastore.cas import encode
from felix_like.datastore.keys import namespaced_key, resource_key

Json = dict[str, Any]

OWNED: Mapping[str, frozenset[str]] = {
    "NetworkPolicy": frozenset(
        (
            *("tier", "order", "ingress", "egress", "selector", "types"),
            *("serviceAccountSelector", "performanceHints"),
        )
    ),
    "Profile": frozenset(("ingress", "egress", "labelsToApply")),
}
"""Fields of a spec that Calico's controllers write or clear. Others, of any version, stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One document that should be in etcd."""

    kind: str
    name: str
    namespace: str = ""
    spec: bytes
    """Compact JSON, as Calico stores it."""
    left_out: tuple[str, ...] = ()
    """What of the Kubernetes object could not be copied, and why: sentences for an operator."""

    @classmethod
    def of(cls, kind: str, namespace: str, name: str, spec: Json, left_out: tuple[str, ...] = ()) -> Copy:
        """Raises ValueError for a name that cannot be a key."""
        copy = cls(kind=kind, namespace=namespace, name=name, spec=encode(spec), left_out=left_out)
        assert copy.key
        return copy

    @property
    def key(self) -> str:
        if self.namespace:
            return namespaced_key(self.kind, self.namespace, self.name)
        return resource_key(self.kind, self.name)

    def fresh(self, uid: str, created: str) -> Json:
        """The document where there is none, in the order in which Calico writes its fields."""
        metadata = {"name": self.name}
        if self.namespace:
            metadata["namespace"] = self.namespace
        metadata |= {"uid": uid, "creationTimestamp": created}
        return {
            "kind": self.kind,
            "apiVersion": "projectcalico.org/v3",
            "metadata": metadata,
            "spec": json.loads(self.spec),
        }

    def merged(self, stored: Json, uid: str, created: str) -> Json | None:
        """The stored document with our part put right; None when it is right.

        Metadata and fields that Calico's controllers do not write stay as they are.
        """
        want: Json = json.loads(self.spec)
        if not self._differs(stored, want):
            return None
        fresh = self.fresh(uid, created)
        spec, metadata = stored.get("spec"), stored.get("metadata")
        foreign: Json = {}
        if isinstance(spec, dict):
            foreign = {field: value for field, value in spec.items() if field not in OWNED[self.kind]}
            if spec.get("tier") == "default":
                want = {"tier": "default"} | want
        kept: Json = metadata if isinstance(metadata, dict) else {}
        named = ("name", "namespace") if self.namespace else ("name",)
        put = {
            field: value
            for field, value in fresh["metadata"].items()
            if field in named or not kept.get(field)
        }
        identity = {"kind": self.kind, "apiVersion": fresh["apiVersion"]}
        return stored | identity | {"metadata": kept | put, "spec": want | foreign}

    def _differs(self, stored: Json, want: Json) -> bool:
        spec, metadata = stored.get("spec"), stored.get("metadata")
        return (
            not isinstance(spec, dict)
            or not isinstance(metadata, dict)
            or stored.get("kind") != self.kind
            or metadata.get("name") != self.name
            or (metadata.get("namespace") or "") != self.namespace
            or _meaning(self.kind, spec) != _meaning(self.kind, want)
        )


def reason(error: Exception) -> str:
    """Why an object cannot be copied, as an operator reads it."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _meaning(kind: str, spec: Json) -> str:
    """What our fields of a spec say. Calico's versions differ in whether they write what is empty.

    As text: to Python, true is 1.
    """
    said = {field: value for field, value in spec.items() if field in OWNED[kind]}
    if said.get("tier") == "default":
        del said["tier"]
    order = said.get("order")
    if isinstance(order, float) and order.is_integer():
        said["order"] = int(order)
    for direction in ("ingress", "egress"):
        if isinstance(said.get(direction), list):
            said[direction] = [_rule(rule) for rule in said[direction]]
    return json.dumps(_filled(said), sort_keys=True)


def _filled(fields: Json) -> Json:
    return {field: value for field, value in fields.items() if value not in (None, "", [], {})}


def _rule(rule: object) -> object:
    if not isinstance(rule, dict):
        return rule
    return _filled(
        {
            field: _filled(value) if field in ("source", "destination") and isinstance(value, dict) else value
            for field, value in rule.items()
        }
    )
