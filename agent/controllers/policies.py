"""The controllers that make Kubernetes' policies Calico's, named as in calico-kube-controllers.

policy: NetworkPolicies -> NetworkPolicies knp.default.*; namespace: Namespaces -> Profiles kns.*;
serviceaccount: ServiceAccounts -> Profiles ksa.*; workloadendpoint: labels of pods -> of their endpoints.
Source: kube-controllers/pkg/controllers/{networkpolicy,namespace,serviceaccount,pod}.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from agent.controllers.copying import Documents, Duty, Labels, Wanted, names_of
from agent.controllers.deeds import Deeds
from agent.controllers.mirror import Mirror
from felix_like.calc.snapshot import Malformed
from felix_like.datastore.keys import RESOURCES, namespaced_key, resource_key
from felix_like.datastore.kube import convert_labels, convert_policy
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import Collection, trim

EMPTY_BELIEVED_AFTER = 300.0
"""Seconds that an API server without any NetworkPolicy, where it had several, has to stay so."""

Json = dict[str, Any]


def _policies() -> Duty:
    def decode(key: str, raw: Json) -> Wanted | Malformed:
        return convert_policy.network_policy(*names_of(key), raw)

    prefix = RESOURCES + "networkpolicies/"
    return Documents(
        Collection(
            path="/apis/networking.k8s.io/v1/networkpolicies",
            prefix="kube/networkpolicies",
            decode=decode,
            trim=trim,
            never_empty=False,
        ),
        prefix=prefix,
        ours=lambda key: key.removeprefix(prefix).partition("/")[2].startswith(convert_policy.PREFIX),
        key_of=lambda namespace, name: namespaced_key(
            "NetworkPolicy", namespace, convert_policy.PREFIX + name
        ),
        patience=EMPTY_BELIEVED_AFTER,
        uid=_uid,
        now=_now,
    )


def _namespaces() -> Duty:
    def decode(key: str, raw: Json) -> Wanted | Malformed:
        return convert_labels.namespace_profile(names_of(key)[1], raw)

    return _profiles(
        "/api/v1/namespaces",
        decode,
        convert_labels.NAMESPACE_PROFILE,
        lambda _, name: convert_labels.NAMESPACE_PROFILE + name,
    )


def _accounts() -> Duty:
    def decode(key: str, raw: Json) -> Wanted | Malformed:
        return convert_labels.account_profile(*names_of(key), raw)

    return _profiles(
        "/api/v1/serviceaccounts",
        decode,
        convert_labels.ACCOUNT_PROFILE,
        lambda namespace, name: f"{convert_labels.ACCOUNT_PROFILE}{namespace}.{name}",
    )


def _profiles(
    path: str,
    decode: Callable[[str, Json], Wanted | Malformed],
    start: str,
    name_of: Callable[[str, str], str],
) -> Duty:
    """Every Kubernetes has namespaces and service accounts: that there are none is never believed."""
    return Documents(
        Collection(
            path=path,
            prefix="kube/" + path.rpartition("/")[2],
            decode=decode,
            trim=convert_labels.trimmed,
        ),
        prefix=f"{RESOURCES}profiles/{start}",
        ours=lambda _: True,
        key_of=lambda namespace, name: resource_key("Profile", name_of(namespace, name)),
        patience=None,
        uid=_uid,
        now=_now,
    )


def _endpoints() -> Duty:
    def decode(key: str, raw: Json) -> Wanted | Malformed | None:
        return convert_labels.pod_labels(*names_of(key), raw)

    return Labels(
        Collection(path="/api/v1/pods", prefix="kube/pods", decode=decode, trim=convert_labels.trimmed),
        prefix=RESOURCES + "workloadendpoints/",
    )


def _uid() -> str:
    return str(uuid.uuid4())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


DUTIES: Mapping[str, Callable[[], Duty]] = MappingProxyType(
    {
        "policy": _policies,
        "namespace": _namespaces,
        "serviceaccount": _accounts,
        "workloadendpoint": _endpoints,
    }
)
"""By the name in ENABLED_CONTROLLERS."""


def copying_controller(name: str, kube: KubeClient, deeds: Deeds) -> Mirror:
    """One of DUTIES."""
    return Mirror(name, kube, DUTIES[name], deeds)
