"""Which services' addresses this node advertises, and why not the others (confd's routes.go, per address).

Ranges are advertised as they are, from every node. A single address is advertised on its own

- by policy Local: while one of the service's ready endpoints of its IP version is on this node;
- by policy Cluster: where it is listed as a /32 (/128), or, an address of a load balancer, while
  serviceLoadBalancerAggregation is Disabled and any endpoint is ready.

An endpoint that terminates is not ready, so the address is withdrawn while kube-proxy still serves it.
Nothing here gets into the kernel, no blackhole either: the kernel looks for a route before kube-proxy
rewrites what the node itself sends, and must find one (projectcalico/calico issues 2457 and 7558).

A change of one service or of one of its slices costs that service alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from felix_like.calc.cluster import quoted
from felix_like.calc.ownership import Ownership, who
from felix_like.calc.service_ranges import covering
from felix_like.calc.service_rules import ServiceRules, Use
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.path import Attributes
from felix_like.model.service import Service, ServiceId, TrafficPolicy
from felix_like.model.verdict import No, Refusal, Verdict, Yes

MAX_REFUSALS = 50
"""Sentences about services at most; what is more is counted."""


@dataclass(frozen=True, slots=True)
class Fault(No):
    """A no that an operator should hear of without asking."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows from one service."""

    prefixes: frozenset[Prefix] = frozenset()
    refusals: tuple[Refusal, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.refusals)


class Services:
    """Keeps `originated` up to date. `snapshot` is Kubernetes'; `ownership` says whose an address is."""

    def __init__(self, snapshot: Snapshot, ownership: Ownership) -> None:
        self.originated: dict[Prefix, Attributes] = {}
        self.rules: ServiceRules | None = None
        """None: not known yet; nothing is advertised, and nothing that was may be withdrawn."""
        self._snapshot = snapshot
        self._ownership = ownership
        self._answers: dict[ServiceId, Answer] = {}
        self._wanted: dict[Prefix, set[ServiceId]] = {}
        self._whole: frozenset[Prefix] = frozenset()
        self._range_refusals: tuple[Refusal, ...] = ()
        self._refusals: tuple[Refusal, ...] | None = ()

    # -- deciding -----------------------------------------------------------------------------------

    def adopt(self, rules: ServiceRules | None, *, anew: bool = False) -> set[Prefix]:
        """Decide by these rules from now on; returns what changed in `originated`. `anew`: the ownership
        differs, so what was wanted or refused may be the other way now."""
        if rules != self.rules:
            self.rules = rules
            self._answers.clear()
            self._wanted.clear()
            self._ranges()
            self._decide(self._snapshot.services)
            return self._settle({*self.originated, *self._whole, *self._wanted})
        if not anew:
            return set()
        before = self._whole
        self._ranges()
        return self._settle(self._decide(tuple(self._answers)) | (before ^ self._whole))

    def update(self, services: Iterable[ServiceId]) -> set[Prefix]:
        """These services differ, or their endpoints do; returns what changed in `originated`."""
        return self._settle(self._decide(services)) if self.rules is not None else set()

    def _settle(self, prefixes: Iterable[Prefix]) -> set[Prefix]:
        """Advertise these or not, as it stands now; returns those that differ."""
        changed = set()
        for prefix in prefixes:
            before, now = self.originated.get(prefix), self._attributes(prefix)
            if before == now:
                continue
            changed.add(prefix)
            if now is None:
                del self.originated[prefix]
            else:
                self.originated[prefix] = now
        return changed

    def _attributes(self, prefix: Prefix) -> Attributes | None:
        rules = self.rules
        if rules is None or (prefix not in self._wanted and prefix not in self._whole):
            return None
        return rules.communities.attributes(prefix, rules.next_hops[prefix.version])

    def _decide(self, services: Iterable[ServiceId]) -> set[Prefix]:
        """Returns the prefixes that somebody wants now or no longer."""
        moved: set[Prefix] = set()
        for service in services:
            before, now = self._answers.get(service, Answer()), self._answer(service)
            if now == before:
                continue
            if now:
                self._answers[service] = now
            else:
                del self._answers[service]
            if now.refusals != before.refusals:
                self._refusals = None
            for prefix in before.prefixes - now.prefixes:
                self._wanted[prefix].discard(service)
                if not self._wanted[prefix]:
                    del self._wanted[prefix]
            for prefix in now.prefixes - before.prefixes:
                self._wanted.setdefault(prefix, set()).add(service)
            moved |= before.prefixes ^ now.prefixes
        return moved

    def _ranges(self) -> None:
        """The ranges that every node advertises as they are."""
        self._whole, self._range_refusals, self._refusals = frozenset(), (), None
        rules = self.rules
        if rules is None or rules.excluded:
            return
        verdicts = {cidr: self._may_announce(rules, cidr) for cidr in rules.ranges.whole}
        self._whole = frozenset(cidr for cidr, verdict in verdicts.items() if verdict)
        self._range_refusals = tuple(
            Refusal("BGPConfiguration default", f"service range {cidr} is not advertised: {verdict.reason}")
            for cidr, verdict in verdicts.items()
            if not verdict
        )

    def _answer(self, name: ServiceId) -> Answer:
        service, rules = self._snapshot.services.get(name), self.rules
        if service is None or rules is None:
            return Answer()
        verdicts = [
            (use, address, self._verdict(rules, service, use, address))
            for use, address in _addresses(service)
        ]
        prefixes = frozenset(Prefix.host(address) for _, address, verdict in verdicts if verdict)
        used = not rules.excluded and any(rules.ranges)
        refusals = [Refusal(f"Service {name}", sentence) for sentence in service.ignored if used]
        refusals += [
            Refusal(f"Service {name}", f"{use.value[0]} {address} is not advertised: {verdict.reason}")
            for use, address, verdict in verdicts
            if isinstance(verdict, Fault) and Prefix.host(address) not in prefixes
        ]
        return Answer(prefixes, tuple(refusals))

    def _verdict(self, rules: ServiceRules, service: Service, use: Use, address: Address) -> Verdict:
        """Does this node advertise the address on its own?"""
        if rules.excluded:
            return No(rules.excluded)
        ranges = use.among(rules.ranges)
        cidr = covering(ranges, address)
        if cidr is None:
            return _outside(use, ranges)
        verdict = self._by_policy(rules, service, use, cidr, address.version)
        if not verdict:
            return verdict
        harm = self._may_announce(rules, Prefix.host(address))
        return verdict if harm else harm

    def _by_policy(
        self, rules: ServiceRules, service: Service, use: Use, cidr: Prefix, version: IpVersion
    ) -> Verdict:
        here, elsewhere = self._endpoints(service.id, version)
        if service.policy is TrafficPolicy.LOCAL:
            if here:
                return Yes(f"externalTrafficPolicy is Local, and {_ready(here)} on this node")
            return No("externalTrafficPolicy is Local, and none of its endpoints on this node is ready")
        if cidr.is_host:
            return Yes(f"externalTrafficPolicy is Cluster, and {cidr} is listed by itself in {use.value[1]}")
        if use is Use.LOAD_BALANCER and not rules.ranges.aggregated:
            if here or elsewhere:
                return Yes("serviceLoadBalancerAggregation is Disabled, and it has a ready endpoint")
            return No("serviceLoadBalancerAggregation is Disabled, and none of its endpoints is ready")
        return No(f"externalTrafficPolicy is Cluster, and every node advertises its range {cidr}")

    def _may_announce(self, rules: ServiceRules, prefix: Prefix) -> Yes | Fault:
        """Would it do harm, or could nobody use it? The other nodes' origin validation asks the same."""
        if prefix.is_default:
            return Fault("it is the whole address space. List the ranges that services have")
        taken = self._ownership.node_inside(prefix)
        if taken is not None:
            name, address = taken
            return Fault(f"it would take the traffic of node {who(name)}'s own address {address}")
        pool = self._ownership.pools.longest(prefix)
        if pool is not None and self._ownership.service_range(prefix) is None:
            return Fault(
                f"it lies in the pods' IP pool {pool}, which is more specific than the service range"
            )
        for cidr, name in rules.unexported:
            if cidr.covers(prefix):
                return Fault(f"IPPool {quoted(name)} has disableBGPExport")
        if prefix.version not in rules.next_hops:
            return Fault(f"this node has no IPv{prefix.version} address to be the next hop")
        return Yes()

    def _endpoints(self, service: ServiceId, version: IpVersion) -> tuple[int, bool]:
        """Ready endpoints of one IP version: how many are here, and is there any other?"""
        slices = [s for s in self._snapshot.slices_of(service) if s.version == version]
        return sum(s.here for s in slices), any(s.elsewhere for s in slices)

    # -- asked --------------------------------------------------------------------------------------

    def read_malformed(self) -> None:
        """What does not parse in Kubernetes differs."""
        self._refusals = None

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is wrong with services, at most so many sentences; and with what Kubernetes says."""
        if self._refusals is None:
            refused = sorted(r for answer in self._answers.values() for r in answer.refusals)
            broken = sorted(Refusal(m.subject, m.reason) for m in self._snapshot.malformed.values())
            self._refusals = (
                *self._range_refusals,
                *_capped(refused, "addresses of services are not advertised"),
                *_capped(broken, "objects are left out"),
            )
        return self._refusals

    def explain(self, prefix: Prefix) -> Iterator[str]:
        """What an operator wants to know of a service range, or of an address of services."""
        rules = self.rules
        if rules is None:
            if self._ownership.service_range(prefix) is not None:
                yield "service: Kubernetes has not been heard yet; what was advertised before stays so"
            return
        if prefix in rules.ranges.whole:
            verdict = Fault(rules.excluded) if rules.excluded else self._may_announce(rules, prefix)
            how = "advertised by every node" if verdict else f"not advertised: {verdict.reason}"
            yield f"service range: {how}"
        if not prefix.is_host:
            return
        found = False
        for service in islice(self._having(prefix.network), 10):
            found = True
            yield from self._lines(rules, service, prefix.network)
        if not found and self._ownership.service_range(prefix) is not None:
            yield "service: none is known that has this address"

    def _having(self, address: Address) -> Iterator[Service]:
        for service in self._snapshot.services.values():
            if service.requested_ip == address or any(mine == address for _, mine in _addresses(service)):
                yield service

    def _lines(self, rules: ServiceRules, service: Service, address: Address) -> Iterator[str]:
        uses = [use for use, mine in _addresses(service) if mine == address]
        if not uses:
            yield (
                f"service {service.id} asks for it (spec.loadBalancerIP), but has not been given it "
                "(status.loadBalancer): not advertised"
            )
        here, elsewhere = self._endpoints(service.id, address.version)
        ready = f"{_ready(here)} here, {'some' if elsewhere else 'none'} elsewhere"
        for use in uses:
            verdict = self._verdict(rules, service, use, address)
            yield (
                f"{use.value[0]} of service {service.id}, externalTrafficPolicy {service.policy}, {ready}: "
                + (f"advertised from this node: {verdict.reason}" if verdict else _not(verdict.reason))
            )


def _addresses(service: Service) -> Iterator[tuple[Use, Address]]:
    for use in Use:
        for address in use.of(service):
            yield use, address


def _ready(count: int) -> str:
    return f"{count or 'no'} ready endpoint{'' if count == 1 else 's'} {'is' if count == 1 else 'are'}"


def _not(reason: str) -> str:
    return f"not advertised on its own: {reason}"


def _outside(use: Use, ranges: tuple[Prefix, ...]) -> No:
    where = use.value[1]
    if not ranges:
        return No(f"{where} of BGPConfiguration default is empty")
    shown = ", ".join(map(str, ranges[:3])) + (f" and {len(ranges) - 3} more" if len(ranges) > 3 else "")
    sentence = f"it lies outside {where} of BGPConfiguration default ({shown})"
    if use is Use.CLUSTER:
        return No(sentence)
    return Fault(f"{sentence}. Add its range there, or take the address off the service")


def _capped(refusals: list[Refusal], what: str) -> Iterator[Refusal]:
    yield from refusals[:MAX_REFUSALS]
    if len(refusals) > MAX_REFUSALS:
        yield Refusal("Kubernetes", f"{len(refusals) - MAX_REFUSALS} more {what}, for reasons like these")
