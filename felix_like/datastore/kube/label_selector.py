"""Kubernetes' label selectors in Calico's selector language.

    {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}
    -> app == 'web' && has(tier)

The text is the one that Calico stores (libcalico-go/lib/backend/k8s/conversion/conversion.go). What a
selector means: k8s.io/api, meta/v1 LabelSelector; all its requirements must hold.
"""

from __future__ import annotations

import re
from typing import Any

from felix_like.datastore.keys import quoted

ORCHESTRATOR = "projectcalico.org/orchestrator"
PODS = f"{ORCHESTRATOR} == 'k8s'"
"""What Calico puts before every pod selector: host endpoints and others' workloads are no pods."""
EVERY_NAMESPACE = "all()"

_KEY = re.compile(r"[a-zA-Z0-9_./-]{1,512}")
"""Label names that Calico's tokenizer takes; Kubernetes' are among them."""


def pod_selector(field: str, selector: object) -> str:
    """Calico's text for a selector of pods; None and an empty one select all. Raises ValueError."""
    requirements = [] if selector is None else _requirements(field, selector)
    return " && ".join((PODS, *requirements))


def namespace_selector(field: str, selector: object) -> str:
    """Calico's text for a selector of namespaces: "" for None (the policy's own), all() for an empty one.

    Calico stores the labels' names as they are; Felix's side puts the profiles' prefix pcns. before them.
    Raises ValueError.
    """
    if selector is None:
        return ""
    return " && ".join(_requirements(field, selector)) or EVERY_NAMESPACE


def _requirements(field: str, selector: object) -> list[str]:
    if not isinstance(selector, dict):
        raise ValueError(f"{field}: {quoted(selector)} is not a label selector")
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    if unknown:
        raise ValueError(f"{field}: {quoted(min(map(str, unknown)))} is not known here; nothing is guessed")
    labels = selector.get("matchLabels")
    if not isinstance(labels, dict | None):
        raise ValueError(f"{field}.matchLabels: {quoted(labels)} is not an object of labels")
    expressions = selector.get("matchExpressions")
    if not isinstance(expressions, list | None):
        raise ValueError(f"{field}.matchExpressions: {quoted(expressions)} is not a list")
    found = []
    for name in sorted(labels or {}):
        where = f"{field}.matchLabels"
        found.append(f"{_key(where, name)} == {_string(where, (labels or {})[name])}")
    for number, expression in enumerate(expressions or ()):
        found.append(_expression(f"{field}.matchExpressions[{number}]", expression))
    return found


def _expression(field: str, expression: object) -> str:
    if not isinstance(expression, dict):
        raise ValueError(f"{field}: {quoted(expression)} is not a label requirement")
    key, operator = _key(field, expression.get("key")), expression.get("operator")
    match operator:
        case "In" | "NotIn":
            word = "in" if operator == "In" else "not in"
            return f"{key} {word} {{ {_set(field, expression.get('values'))} }}"
        case "Exists":
            return f"has({key})"
        case "DoesNotExist":
            return f"! has({key})"
    raise ValueError(f"{field}: {quoted(operator)} is not In, NotIn, Exists or DoesNotExist")


def _set(field: str, values: Any) -> str:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{field}: In and NotIn need a list of values, not {quoted(values)}")
    return ", ".join(_string(field, value) for value in values)


def _key(field: str, key: object) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"{field}: {quoted(key)} is not a label's name")
    return key


def _string(field: str, value: object) -> str:
    """A value in the quotes that Calico writes. Its language has no escapes, so none of it may be a quote."""
    if not isinstance(value, str) or "'" in value or not value.isprintable():
        raise ValueError(f"{field}: {quoted(value)} is not a label's value")
    return f"'{value}'"
