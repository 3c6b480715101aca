"""Services' routes beside the datastore's answer: what both stores together make of `Desired`.

What Kubernetes says of services goes by rules that the datastore sets, as far as that is acted on: a locked
datastore holds the rules back, not the services.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from felix_like.calc.kubernetes import Kubernetes, KubernetesChange
from felix_like.calc.ownership import Ownership
from felix_like.calc.service_rules import ServiceRules, service_rules
from felix_like.calc.services import Services
from felix_like.calc.snapshot import Change, Snapshot
from felix_like.model.address import Prefix
from felix_like.model.desired import Desired, LocalNode
from felix_like.model.service import KubernetesNode, ServiceId
from felix_like.model.verdict import Refusal


class ServiceRoutes:
    """`early`, in every method: so soon after the datastore was read that Kubernetes may yet be heard."""

    def __init__(self, local: LocalNode, ownership: Ownership, *, expected: bool) -> None:
        self._local = local
        self._ownership = ownership
        self._kubernetes = Kubernetes(local, expected=expected)
        self._services = Services(self._kubernetes.snapshot, ownership)
        self._rules: ServiceRules | None = None
        """What the datastore, as acted on, says of services."""
        self._told: tuple[Refusal, ...] = ()
        """The refusals that were handed out last."""

    # -- told ---------------------------------------------------------------------------------------

    def tell(self, changes: Iterable[KubernetesChange], in_sync: bool) -> tuple[frozenset[ServiceId], bool]:
        """Take in what Kubernetes says; which services differ, and do its nodes?"""
        known = self._kubernetes.known
        touched = self._kubernetes.tell(changes, in_sync)
        if touched.malformed:
            self._services.read_malformed()
        return touched.services, KubernetesNode in touched.kinds or self._kubernetes.known != known

    def tell_stale(self, reason: str | None) -> bool:
        """Kubernetes does not answer, or answers again; is anything known now that was not?"""
        known = self._kubernetes.known
        self._kubernetes.tell_stale(reason)
        return self._kubernetes.known != known

    def read_rules(self, snapshot: Snapshot) -> None:
        """The datastore's nodes, pools or configurations differ, and so may the ownership."""
        self._rules = service_rules(snapshot, self._local, self._ownership.ranges)

    # -- asked --------------------------------------------------------------------------------------

    @property
    def decided(self) -> bool:
        """It is known what to advertise."""
        return self._services.rules is not None

    @property
    def by_pod_cidrs(self) -> bool:
        """Pods' addresses come from podCIDRs."""
        return self._kubernetes.pod_cidrs is not None

    def pod_cidr_changes(self, snapshot: Snapshot) -> list[Change]:
        """What podCIDRs change in the datastore's snapshot."""
        pod_cidrs = self._kubernetes.pod_cidrs
        return pod_cidrs.changes(snapshot.nodes, self._kubernetes.nodes()) if pod_cidrs is not None else []

    def decide(
        self, early: bool, services: Iterable[ServiceId] = (), *, ownership_differs: bool = False
    ) -> set[Prefix]:
        """Decide about these services, and about all of them where the rules differ; the prefixes whose
        adverts change."""
        rules = self._rules_now(early)
        if rules != self._services.rules or ownership_differs:
            return self._services.adopt(rules, anew=ownership_differs)
        return self._services.update(services)

    def _rules_now(self, early: bool) -> ServiceRules | None:
        """None: nothing is known, so nothing is said."""
        if self._rules is None or self.waiting(early):
            return None
        exclusion = self._kubernetes.exclusion
        return replace(self._rules, excluded=exclusion) if exclusion else self._rules

    @property
    def refuses_otherwise(self) -> bool:
        """There are other refusals than `added_to` gave last."""
        return self._services.refusals != self._told

    def added_to(self, base: Desired) -> Desired:
        """The datastore's answer with the services' routes and refusals."""
        own, refusals = self._services.originated, self._services.refusals
        self._told = refusals
        return replace(
            base,
            originated={**own, **base.originated} if own else base.originated,
            refusals=tuple(sorted({*base.refusals, *refusals})) if refusals else base.refusals,
        )

    def waiting(self, early: bool) -> bool:
        """Nobody knows (yet) which service routes of before our start are still right."""
        return early and self._kubernetes.missing

    @property
    def waiting_for_pod_cidrs(self) -> bool:
        """Nobody knows (yet) whose pods are where; that has no end, as with the datastore."""
        return self.by_pod_cidrs and self._kubernetes.expected and self._kubernetes.nodes() is None

    def holding(self, early: bool, *, without_pod_cidrs: bool) -> str:
        """Why nothing that was advertised before our start may go yet. `without_pod_cidrs`: what is acted on
        was calculated while nobody knew them."""
        if self.waiting_for_pod_cidrs:
            if self._kubernetes.known:
                return "the nodes' podCIDRs are not known: Kubernetes shows no Node"
            return "the nodes' podCIDRs are not known: Kubernetes has not been heard"
        if without_pod_cidrs:
            return "the nodes' podCIDRs are not acted on before the datastore is unlocked"
        if self.waiting(early) and self._rules is not None and any(self._rules.ranges):
            return "services are not known: Kubernetes has not been heard"
        return ""

    def explain(self, prefix: Prefix) -> list[str]:
        """What there is to say of services at this prefix."""
        lines = list(self._services.explain(prefix))
        kubernetes = self._kubernetes
        if not lines:
            return lines
        if kubernetes.stale is not None:
            lines.append(f"Kubernetes cannot be followed: {kubernetes.stale}")
        elif not kubernetes.expected:
            lines.append("single services are not known: this agent has no access to Kubernetes")
        if kubernetes.known and kubernetes.name not in kubernetes.snapshot.kubernetes_nodes:
            lines.append(
                f"Kubernetes shows no Node {kubernetes.name}: if that is not this node's name there, no "
                "endpoint counts as being here. Set CALICO_K8S_NODE_REF"
            )
        return lines
