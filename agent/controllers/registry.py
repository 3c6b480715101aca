"""The controllers there are, and what each needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agent.controllers.controller import Controller
from agent.controllers.deeds import Deeds
from agent.controllers.ipam_gc import IpamController
from agent.controllers.nodes import NodeController
from agent.controllers.policies import copying_controller
from agent.controllers.settings import ControllerSettings
from felix_like.datastore.client import Client
from felix_like.datastore.kube.client import KubeClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a controller may be made of. `etcd` is for reading: a term's own client writes."""

    settings: ControllerSettings
    etcd: Client
    kube: KubeClient | None
    deeds: Deeds
    node_removed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def api(self) -> KubeClient:
        """For controllers that are not made without."""
        assert self.kube is not None
        return self.kube


@dataclass(frozen=True, slots=True)
class Offer:
    """A controller by its name in TORTIE_CONTROLLERS."""

    name: str
    make: Callable[[Tools], Controller]
    without_kubernetes: str
    """What is not done when there is no Kubernetes API, as the end of a sentence."""
    needs_kubernetes: bool = True
    """False: the rest of it is done all the same."""


def _node(tools: Tools) -> Controller:
    return NodeController(
        tools.etcd,
        tools.api,
        tools.deeds,
        most=tools.settings.node_removal_limit,
        removed=tools.node_removed,
    )


def _ipam(tools: Tools) -> Controller:
    return IpamController(
        tools.etcd,
        tools.kube,
        tools.deeds,
        grace=tools.settings.leak_grace,
        removed=tools.node_removed,
    )


def _copying(name: str) -> Callable[[Tools], Controller]:
    return lambda tools: copying_controller(name, tools.api, tools.deeds)


OFFERS = (
    Offer("node", _node, "labels are not synced, and no Node is removed"),
    Offer("ipam", _ipam, "no address and no gone node's block is collected", needs_kubernetes=False),
    Offer("policy", _copying("policy"), "NetworkPolicies are not copied"),
    Offer("namespace", _copying("namespace"), "Namespaces are not copied as Profiles"),
    Offer("serviceaccount", _copying("serviceaccount"), "ServiceAccounts are not copied as Profiles"),
    Offer("workloadendpoint", _copying("workloadendpoint"), "endpoints' labels do not follow their pods'"),
)


def names() -> tuple[str, ...]:
    return tuple(offer.name for offer in OFFERS)


def chosen(tools: Tools, say: Callable[[str], None] = lambda _: None) -> Iterator[Controller]:
    """The controllers to run. `say` hears what is not done, and why."""
    for offer in OFFERS:
        if offer.name not in tools.settings.controllers:
            continue
        if tools.kube is None:
            say(f"{offer.name}: there is no KUBECONFIG and no service account, so {offer.without_kubernetes}")
        if tools.kube is not None or not offer.needs_kubernetes:
            yield offer.make(tools)
