"""Where messages go: `<prefix>/v1/<cluster>/<node>/<kind>`."""

from __future__ import annotations

from typing import NamedTuple

from agent.telemetry.payloads import KINDS, VERSION


class Topic(NamedTuple):
    """A topic that was read."""

    cluster: str
    node: str
    kind: str


def base(prefix: str, cluster: str, node: str) -> str:
    """A node's own branch; unique on the broker, so it is the client identifier, too."""
    return f"{prefix}/v{VERSION}/{cluster}/{node}"


def subscriptions(prefix: str, cluster: str = "+", kinds: tuple[str, ...] = tuple(KINDS)) -> list[str]:
    """Filters for these kinds of every node."""
    return [f"{prefix}/v{VERSION}/{cluster}/+/{kind}" for kind in kinds]


def parse(prefix: str, topic: str) -> Topic | None:
    """None for a topic that is not one of ours."""
    rest = topic.removeprefix(f"{prefix}/v{VERSION}/")
    levels = rest.split("/")
    if rest == topic or len(levels) != 3 or levels[2] not in KINDS or not levels[1]:
        return None
    return Topic(*levels)
