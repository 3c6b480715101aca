"""The node controller: Kubernetes' labels for Calico Nodes, and an end for those that Kubernetes has not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from agent.controllers.deeds import Deeds
from agent.controllers.election import Leadership
from agent.controllers.kube_view import KubeNode, KubeView
from felix_like.calc.node_fate import HOLD, PATIENCE, Missing, removable
from felix_like.calc.node_labels import ANNOTATION, Labels, synced
from felix_like.datastore.cas import CasStore
from felix_like.datastore.client import Client
from felix_like.datastore.errors import CasConflict, NotFound, Refused
from felix_like.datastore.ipam_listing import CONTROLLERS_CONFIGURATION, NODES, kubernetes_name
from felix_like.datastore.keys import check_name
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.errors import KubeError
from felix_like.datastore.node_removal import remove_node
from felix_like.datastore.watch import Informer, InSync, Stale
from felix_like.model.verdict import No

Json = dict[str, Any]
NOT_YET = "etcd has not been heard yet"
SETTLE = 0.1
"""Seconds in which changes are gathered before a look."""


class NodeController:
    """`most`: percent of the Nodes that may be missing at once; beyond it none is removed."""

    name = "node"

    def __init__(
        self,
        etcd: Client,
        kube: KubeClient,
        deeds: Deeds,
        *,
        most: int,
        removed: asyncio.Event,
        patience: float = PATIENCE,
        hold: float = HOLD,
    ) -> None:
        """`removed` is set after a Node was removed: there may be addresses to collect."""
        self._etcd = etcd
        self._kube = kube
        self._deeds = deeds
        self._most = most
        self._removed = removed
        self._patience = patience
        self._hold = hold

    async def run(self, leadership: Leadership) -> None:
        term = _Term(self, leadership)
        async with asyncio.TaskGroup() as group:
            group.create_task(term.view.run(), name="node: Kubernetes")
            group.create_task(term.follow(), name="node: etcd")
            group.create_task(term.look_again(), name="node: look")


class _Term:
    """What is known in one term of office."""

    def __init__(self, controller: NodeController, leadership: Leadership) -> None:
        self._own = controller
        self._client = leadership.client
        self._cas = CasStore(leadership.client)
        self._informer = Informer(controller._etcd, (NODES,), vital=(NODES,))
        self._stale: str | None = NOT_YET
        self._missing = Missing()
        self.view = KubeView(controller._kube, pods=False)

    async def follow(self) -> None:
        async with contextlib.aclosing(self._informer.events()) as events:
            async for event in events:
                match event:
                    case Stale(reason):
                        self._stale = reason
                    case InSync():
                        self._stale = None
                self.view.changed.set()

    async def look_again(self) -> None:
        """After each change, and when somebody's patience is over."""
        clock = asyncio.get_running_loop().time
        while True:
            self.view.changed.clear()
            at = await self._look(clock())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(at):
                    await self.view.changed.wait()
            await asyncio.sleep(SETTLE)

    async def _look(self, now: float) -> float | None:
        """Returns when to look again at the latest. Raises EtcdError, and KubeError for a broken question."""
        nodes = self.view.nodes()
        if isinstance(nodes, No) or self._stale is not None:
            # What was missing was not seen to be missing in between.
            self._missing = Missing({}, self._missing.held_until)
            reason = nodes.reason if isinstance(nodes, No) else self._stale
            self._own._deeds.trouble(self._own.name, None if self._is_new else reason)
            return None
        expected: dict[str, str] = {}
        stored: dict[str, Json] = {}
        for kv in list(self._informer.raw.values()):
            value = _object(kv.value)
            kubernetes = kubernetes_name(value)
            if kubernetes is not None and _is_name(kv.key.removeprefix(NODES)):
                expected[kv.key.removeprefix(NODES)] = kubernetes
                stored[kv.key.removeprefix(NODES)] = value
        notes = await self._sync_labels(stored, expected, nodes)
        removal = removable(
            expected,
            nodes.keys(),
            self._missing,
            now=now,
            most=self._own._most,
            patience=self._own._patience,
            hold=self._own._hold,
        )
        self._missing = removal.missing
        self._own._deeds.gauges["nodes_missing"] = len(removal.missing.since)
        notes += [removal.held] if removal.held else []
        failed = [note for name in removal.nodes if (note := await self._remove(name, expected[name]))]
        self._own._deeds.trouble(self._own.name, "; ".join((notes + failed)[:3]))
        return now + self._own._patience if failed else removal.again_at

    @property
    def _is_new(self) -> bool:
        return self.view.is_new or self._stale is NOT_YET

    async def _sync_labels(
        self, stored: Mapping[str, Json], expected: Mapping[str, str], nodes: Mapping[str, KubeNode]
    ) -> list[str]:
        """Returns what stands in the way, as sentences."""
        notes: list[str] = []
        configuration = await self._cas.client.get(CONTROLLERS_CONFIGURATION)
        if configuration is not None and not _labels_wanted(_object(configuration.value)):
            return notes
        for name, value in stored.items():
            node = nodes.get(expected[name])
            if node is None:
                continue
            wanted = _wanted(value, node.labels)
            if isinstance(wanted, No):
                notes.append(f"Node {name}: its labels are not synced: {wanted.reason}")
            elif wanted != value and self._own._deeds.may(
                "sync-labels", f"Node {name}", "Kubernetes' differ"
            ):
                await self._write_labels(name, node.labels)
        return notes

    async def _write_labels(self, name: str, labels: Mapping[str, str]) -> None:
        def change(value: Json) -> Json | None:
            wanted = _wanted(value, labels)
            return None if isinstance(wanted, No) else wanted

        with contextlib.suppress(NotFound):  # deleted meanwhile
            await self._cas.update(NODES + name, change)
            self._own._deeds.did("sync-labels", "changed", f"Node {name}", "as Kubernetes has them")

    async def _remove(self, name: str, kubernetes: str) -> str:
        """Ask Kubernetes once more, then remove. Returns why not, when it is to be tried again."""
        reason = f"Kubernetes has no Node {kubernetes}"
        try:
            if await self.view.node_exists(kubernetes):
                return f"Node {name} is not removed: Kubernetes has its Node, though the list has not"
        except KubeError as error:
            return f"Node {name} is not removed: {error}"
        if not self._own._deeds.may("remove-node", f"Node {name}", reason):
            return ""
        try:
            words = await remove_node(self._client, name)
        except (Refused, CasConflict) as error:
            return f"Node {name} is not removed whole: {error}"
        if words:
            said = f"{reason}; removed: {', '.join(words)}"
            self._own._deeds.did("remove-node", "node-gone", f"Node {name}", said)
        self._own._removed.set()
        return ""


def _wanted(value: Json, labels: Mapping[str, str]) -> Json | No:
    """A Calico Node with Kubernetes' labels; all else stays as it is."""
    metadata = value.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    before, annotations = metadata.get("labels"), metadata.get("annotations")
    before = before if isinstance(before, dict) else {}
    annotations = annotations if isinstance(annotations, dict) else {}
    noted = annotations.get(ANNOTATION)
    found = synced(before, noted if isinstance(noted, str) else None, labels)
    if isinstance(found, No):
        return found
    assert isinstance(found, Labels)
    if dict(found.labels) == before and _same(noted, found.annotation):
        return value
    changed = {"labels": dict(found.labels), "annotations": {**annotations, ANNOTATION: found.annotation}}
    return {**value, "metadata": {**metadata, **changed}}


def _same(noted: object, wanted: str) -> bool:
    """The annotation says the same, whoever wrote it and in whatever order."""
    try:
        return isinstance(noted, str) and json.loads(noted) == json.loads(wanted)
    except (ValueError, RecursionError):
        return False


def _labels_wanted(configuration: Json) -> bool:
    """KubeControllersConfiguration's `spec.controllers.node.syncLabels`; Enabled when it does not say."""
    value: Any = configuration
    for name in ("spec", "controllers", "node", "syncLabels"):
        value = value.get(name) if isinstance(value, dict) else None
    return bool(value != "Disabled")


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except ValueError:
        return False


def _object(octets: bytes) -> Json:
    try:
        value = json.loads(octets)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
