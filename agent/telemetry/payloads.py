"""The messages of tortie/v1, the one definition: written with it, read with it, the JSON schema made of it.

Additions keep the version; whoever reads ignores fields he does not know. Every list and every text is
bounded, so a node's messages do not grow with the cluster. Times are seconds since the epoch by the node's
own clock.
"""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

VERSION: Final = 1
MOST_NAMED = 10
"""Entries of a list at most; a count beside it says how many there are."""
LONGEST_TEXT = 300
"""Characters of a sentence or a name at most."""

Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Time = Annotated[float, Meta(ge=0, le=1e11)]

Life = Literal["running", "stopped", "gone"]
"""`stopped`: ended in order, its routes and sessions stay; `gone`: the broker lost it (its last will)."""


class Payload(Struct, kw_only=True, frozen=True):
    """What every message has."""

    version: Literal[1]
    cluster: Text
    node: Text
    time: Time
    """When it was written; in a last will, when the agent connected."""


class Part(Struct, kw_only=True, frozen=True):
    """A part of the agent with a state of its own."""

    state: Text
    since: Time
    reason: Text = ""


class AgentLife(Struct, kw_only=True, frozen=True):
    """Which agent speaks, since when."""

    version: Text
    started: Time


class Said(Struct, kw_only=True, frozen=True):
    """What is refused or wrong, and why."""

    subject: Text
    reason: Text


class Listed(Struct, kw_only=True, frozen=True):
    """How many there are, and the first of them."""

    count: Count = 0
    first: Annotated[tuple[Said, ...], Meta(max_length=MOST_NAMED)] = ()


class Status(Payload, kw_only=True, frozen=True):
    """Retained at `.../status`: is the node there, and does it do its work."""

    state: Life
    agent: AgentLife | None = None
    """This and the following are absent in a last will."""
    datastore: Part | None = None
    kubernetes: Part | None = None
    """Absent where the agent has no access to Kubernetes; `idle`: it has, and nothing needs it."""
    speaker: Part | None = None
    origin_validation: Text = ""
    failed: Listed = Listed()
    """Routes that could not be installed."""
    conflicts: Listed = Listed()
    """Routes that collide with somebody else's."""
    refusals: Listed = Listed()
    """What the datastore or a peer says and was not used."""


class Unestablished(Struct, kw_only=True, frozen=True):
    """A session that is not up."""

    address: Text
    name: Text
    type: Text
    state: Text
    since: Time
    reason: Text = ""
    remote_node: Text | None = None


class Peers(Payload, kw_only=True, frozen=True):
    """Retained at `.../peers`: the sessions as counts, and those that are not established by name."""

    total: Count
    established: Count
    unestablished: Annotated[tuple[Unestablished, ...], Meta(max_length=MOST_NAMED)] = ()
    """The first of `total - established`."""


class RouteCounts(Struct, kw_only=True, frozen=True):
    """Kernel routes."""

    wanted: Count = 0
    installed: Count = 0
    failed: Count = 0
    conflicts: Count = 0


class RibCounts(Struct, kw_only=True, frozen=True):
    """Prefixes and learned paths, by the verdict of origin validation."""

    prefixes: Count = 0
    paths: Count = 0
    valid: Count = 0
    invalid: Count = 0
    unknown: Count = 0


class PathCounts(Struct, kw_only=True, frozen=True):
    """Sums over all peers."""

    received: Count = 0
    accepted: Count = 0
    rejected: Count = 0
    stale: Count = 0
    advertised: Count = 0


class Counts(Payload, kw_only=True, frozen=True):
    """Retained at `.../counts`: tables in numbers."""

    routes: RouteCounts
    rib: RibCounts
    paths: PathCounts
    revision: Count = 0
    """The datastore's, as far as the agent has read."""


EventKind = Literal["agent", "datastore", "speaker", "peer", "route", "conflict", "refusal", "lost"]


class Event(Payload, kw_only=True, frozen=True):
    """At `.../events`, not retained: one change.

    `before` and `after` are states; a route goes between `ok` and `failed`, a conflict and a refusal between
    `none` and `present`. Kubernetes is of kind `datastore`, with its name as subject. Kind `lost`: the reason
    says how many changes nobody was told.
    """

    kind: EventKind
    subject: Text
    before: Text = ""
    after: Text = ""
    reason: Text = ""


KINDS: dict[str, type[Payload]] = {"status": Status, "peers": Peers, "counts": Counts, "events": Event}
"""The last level of a topic -> what is published there."""
RETAINED = ("status", "peers", "counts")


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12): a definition per kind of message, by the struct's name."""
    _, components = msgspec.json.schema_components(KINDS.values(), ref_template="#/$defs/{name}")
    for component in components.values():
        # Python 3.13 takes a docstring's indentation away, older ones leave it.
        component["description"] = inspect.cleandoc(component.get("description", ""))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tortie's messages over MQTT, version 1",
        "description": "Topic …/status: Status. …/peers: Peers. …/counts: Counts. …/events: Event.",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in KINDS.values()],
        "$defs": components,
    }


def bounded(text: object) -> str:
    """A text of at most LONGEST_TEXT characters; what a peer or etcd said may be as long as it likes.

    JSON from elsewhere may hold half a surrogate pair, which UTF-8 cannot.
    """
    whole = str(text)[: LONGEST_TEXT + 1].encode("utf-8", "replace").decode()
    return whole if len(whole) <= LONGEST_TEXT else whole[: LONGEST_TEXT - 1] + "…"
