"""Labels of a Kubernetes Node, copied to the Calico Node that stands for it.

Calico's rule (kube-controllers/pkg/controllers/node/labels.go): the labels that came from Kubernetes are
noted in an annotation. What Kubernetes has wins; what it had, by the annotation, and has no more goes; every
other label, set with calicoctl for instance, stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from felix_like.model.verdict import No

ANNOTATION = "projectcalico.org/kube-labels"
"""Of a Calico Node: the labels as they were copied, a JSON object."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What a Calico Node should carry."""

    labels: Mapping[str, str]
    annotation: str


def synced(labels: Mapping[str, str], annotation: str | None, kubernetes: Mapping[str, str]) -> Labels | No:
    """The Calico Node's labels and annotation now, and Kubernetes' labels -> how they should be.

    No: the annotation does not parse, so that what may go cannot be known.
    """
    try:
        before = json.loads(annotation) if annotation else {}
    except (ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        return No(
            f"its annotation {ANNOTATION} is not a JSON object: delete the annotation, and it is made anew"
        )
    gone = set(before) - set(kubernetes)
    kept = {name: value for name, value in labels.items() if name not in gone}
    text = json.dumps(dict(sorted(kubernetes.items())), separators=(",", ":"), ensure_ascii=False)
    return Labels({**kept, **kubernetes}, text)
