"""Kubernetes' Namespaces and ServiceAccounts as Calico's Profiles, and the labels of pods.

A profile carries labels to every endpoint that names it: pcns.… of its namespace, pcsa.… of its service
account. Selectors of namespaces and service accounts are matched with them. Source:
libcalico-go/lib/backend/k8s/conversion/{conversion,constants,workload_endpoint_default}.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.copies import Copy, Json, reason
from felix_like.datastore.kube.label_selector import ORCHESTRATOR

NAMESPACE_PROFILE = "kns."
ACCOUNT_PROFILE = "ksa."
"""What starts so is ours."""
NAMESPACE_LABEL = "pcns."
ACCOUNT_LABEL = "pcsa."
NAME = "projectcalico.org/name"
NAMESPACE = "projectcalico.org/namespace"
SERVICE_ACCOUNT = "projectcalico.org/serviceaccount"
LONGEST_ACCOUNT_LABEL = 62
"""Characters of a service account's name that Calico still puts into a label of the endpoint."""

_ALLOW = {"action": "Allow", "source": {}, "destination": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLabels:
    """What the workload endpoints of a pod should be labelled with."""

    namespace: str
    pod: str
    labels: Mapping[str, str]
    """Sorted, as Calico stores them."""


def namespace_profile(name: str, raw: Json) -> Copy | Malformed:
    """Allows everything: what no policy selects is open, as Kubernetes has it. Never raises."""
    try:
        labels = _labels(raw, NAMESPACE_LABEL) | {NAMESPACE_LABEL + NAME: name}
        spec = {"ingress": [_ALLOW], "egress": [_ALLOW], "labelsToApply": dict(sorted(labels.items()))}
        return Copy.of("Profile", "", NAMESPACE_PROFILE + name, spec)
    except (ValueError, RecursionError) as error:
        return Malformed(f"Namespace {quoted(name)}", reason(error))


def account_profile(namespace: str, name: str, raw: Json) -> Copy | Malformed:
    """Labels only. Never raises."""
    try:
        labels = _labels(raw, ACCOUNT_LABEL) | {ACCOUNT_LABEL + NAME: name}
        spec = {"labelsToApply": dict(sorted(labels.items()))}
        return Copy.of("Profile", "", f"{ACCOUNT_PROFILE}{namespace}.{name}", spec)
    except (ValueError, RecursionError) as error:
        return Malformed(f"ServiceAccount {quoted(f'{namespace}/{name}')}", reason(error))


def pod_labels(namespace: str, name: str, raw: Json) -> PodLabels | Malformed | None:
    """None for a pod in the host's network, which has no endpoint. Never raises.

    Whatever labels a pod has itself, Calico's own two tell its namespace and service account. Labels that
    begin like those which it inherits from these (`pcns.`, `pcsa.`) are copied, as Calico does.
    """
    spec = raw.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    if spec.get("hostNetwork") is True:
        return None
    try:
        labels = _labels(raw, "") | {NAMESPACE: namespace, ORCHESTRATOR: "k8s"}
    except (ValueError, RecursionError) as error:
        return Malformed(f"Pod {quoted(f'{namespace}/{name}')}", reason(error))
    account = spec.get("serviceAccountName")
    if isinstance(account, str) and 0 < len(account) <= LONGEST_ACCOUNT_LABEL:
        labels[SERVICE_ACCOUNT] = account
    else:
        labels.pop(SERVICE_ACCOUNT, None)
    return PodLabels(namespace=namespace, pod=name, labels=dict(sorted(labels.items())))


def trimmed(raw: Json) -> Json:
    """What of a namespace, service account or pod is of interest here: pods are many."""
    metadata, spec = raw.get("metadata"), raw.get("spec")
    kept: Json = {"metadata": _only(metadata, ("name", "namespace", "labels"))}
    if isinstance(spec, dict):
        kept["spec"] = _only(spec, ("hostNetwork", "serviceAccountName"))
    return kept


def _only(fields: object, names: tuple[str, ...]) -> Json:
    return {name: fields[name] for name in names if name in fields} if isinstance(fields, dict) else {}


def _labels(raw: Json, prefix: str) -> dict[str, str]:
    metadata = raw.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, dict) else None
    if labels is None:
        return {}
    if not isinstance(labels, dict) or not all(
        isinstance(part, str) and part.isprintable() for item in labels.items() for part in item
    ):
        raise ValueError(f"metadata.labels: {quoted(labels)} is not an object of text")
    return {prefix + name: value for name, value in labels.items()}
