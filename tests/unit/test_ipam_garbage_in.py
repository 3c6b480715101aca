"""Whatever stands in IPAM's keys: each part of each document replaced by what does not belong there.

One value that raises would end tortie-controllers, and end it again after each start.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from felix_like.calc import garbage, upkeep
from felix_like.datastore import blocks
from felix_like.datastore.cas import encode
from felix_like.datastore.errors import KeyValue, Refused
from felix_like.datastore.ipam_listing import CLUSTER_INFORMATION, CONTROLLERS_CONFIGURATION, Reader
from felix_like.datastore.keys import affinity_key, block_key, handle_key, resource_key
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import Cluster, IpamState
from tests.support.ipam_world import OTHER

CIDR = Prefix.parse("10.0.0.64/30")
BLOCK: dict[str, Any] = {
    "cidr": str(CIDR),
    "affinity": "host:a",
    "affinity_claim_time": "2026-01-10T09:00:00Z",
    "hostAffinity": None,
    "allocations": [0, None, None, None],
    "attributes": [
        {
            "handle_id": "h",
            "secondary": {"node": "a", "pod": "web", "namespace": "default"},
            "releasedAt": None,
            "alternateOwnerAttrs": None,
        }
    ],
    "unallocated": [1, 2, 3],
    "sequenceNumber": 3,
    "sequenceNumberForAllocation": {"0": 2},
    "deleted": False,
}
DOCUMENTS: dict[str, Any] = {
    block_key(CIDR): BLOCK,
    handle_key("h"): {"block": {str(CIDR): 1}, "deleted": False},
    affinity_key("a", CIDR): {"state": "confirmed", "deleted": False},
    resource_key("Node", "a"): {"spec": {"orchRefs": [{"nodeName": "a", "orchestrator": "k8s"}]}},
    resource_key("Node", "a").replace("nodes/a", "workloadendpoints/default/a-k8s-web-eth0"): {
        "spec": {"node": "a", "ipNetworks": ["10.0.0.65/32"]}
    },
    CLUSTER_INFORMATION: {"spec": {"datastoreReady": True}},
    CONTROLLERS_CONFIGURATION: {"spec": {"controllers": {"node": {"leakGracePeriod": "15m0s"}}}},
}
WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 1.5, float("inf"), float("nan"), 10**30),
    *("", "x", "\n", "\ud800", "a/b", "1" * 5000, ":", "host:", "host:\n"),
    *([], [[]], [None], ["x"], [{}], [5], {}, {"a": 1}, {"": None}),
)
CLUSTERS = (None, Cluster(nodes=frozenset("b"), pods={("default", "coredns"): OTHER}))


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(document, dict | list):
        for part in document if isinstance(document, dict) else range(len(document)):
            yield from places(document[part], (*path, part))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    place = copy
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return copy


def read(documents: dict[str, Any]) -> IpamState:
    reader = Reader()
    for key, document in documents.items():
        reader.read(KeyValue(key, json.dumps(document).encode(), 1, 1))
    return reader.state()


@pytest.mark.parametrize("key", DOCUMENTS)
def test_it_is_damaged_or_can_be_judged(key: str) -> None:
    for path in places(DOCUMENTS[key]):
        for value in WRONG:
            state = read({**DOCUMENTS, key: replaced(DOCUMENTS[key], path, value)})
            for cluster in CLUSTERS:
                garbage.leaks(garbage.judge(state, cluster, since={}, now=1.0, grace=1.0))
                upkeep.orphaned_blocks(state, cluster)
            findings: tuple[upkeep.Finding, ...] = (
                *upkeep.idle_blocks(state, claimed_before="2026-01-10T10:00:00Z"),
                *upkeep.stale_affinities(state),
                *upkeep.wrong_handles(state),
            )
            assert all(finding.signature and finding.subject for finding in findings)


def test_a_block_is_refused_or_can_be_written() -> None:
    for path in places(BLOCK):
        for value in WRONG:
            block = replaced(BLOCK, path, value)
            if not isinstance(block, dict):
                continue  # which is refused before
            with contextlib.suppress(Refused):
                blocks.check(block, CIDR)
                assert blocks.owner(block) is None or isinstance(blocks.owner(block), str)
                blocks.held_by(block, "h")
                blocks.bump(block)
                blocks.assign(block, CIDR, 1, "other", {})
                blocks.release(block, range(4))
                assert blocks.problems(block, CIDR) == []


def test_what_is_as_calico_writes_it_is_neither() -> None:
    state = read(DOCUMENTS)
    assert (state.damaged, state.locked, state.unknown_grace) == ({}, "", "")
    assert [len(block.allocations) for block in state.blocks] == [1]
    full = {**BLOCK, "allocations": [0, 0, 0, 0], "unallocated": None}
    assert blocks.problems(full, CIDR) == []
    assert blocks.release(full, [2]) == {"h": 1}
    assert full["unallocated"] == [2]


@pytest.mark.parametrize("text", ["\ud800", "x\udfffy", "\U0001f600", "<\u2028>"])
def test_what_is_no_character_is_written_as_it_was_read(text: str) -> None:
    """Half a surrogate pair may stand in any JSON, and no UTF-8 has it: its escape does."""
    stored = {"spec": {"unknown": text}, text: 1}
    assert json.loads(encode(stored).decode()) == stored
