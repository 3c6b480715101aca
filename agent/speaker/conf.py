"""Cutting exabgp.conf into neighbor blocks, so that a reload parses only what is new.

ExaBGP parses about a thousand neighbors a second; reading all of 500 again because one came would
stop every session for half a second. The renderer writes one block per neighbor at the left margin;
any other layout is parsed whole.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.speaker.settings import ConfError, Neighbor

Parse = Callable[[str], list[Neighbor]]
_EMPTY = "template { }"


def blocks(text: str) -> list[str] | None:
    """The neighbor blocks; None when the layout is not the renderer's."""
    found: list[str] = []
    inside: list[str] | None = None
    for line in text.split("\n"):
        if inside is not None:
            inside.append(line)
            if line == "}":
                found.append("\n".join(inside) + "\n")
                inside = None
            elif line and line[0] not in " \t":
                return None
        elif line.startswith("neighbor ") and line.endswith("{"):
            inside = [line]
        elif line.strip() and not line.startswith("#") and line.strip() != _EMPTY:
            return None
    return None if inside is not None else found


class Reader:
    """Parses configurations, remembering the blocks of the last good one."""

    def __init__(self, parse: Parse) -> None:
        self._parse = parse
        self._known: dict[str, Neighbor] = {}

    def read(self, text: str) -> list[Neighbor]:
        """All neighbors of a configuration. Raises ConfError."""
        parts = blocks(text)
        if parts is None:
            self._known = {}
            return self._parse(text)
        known: dict[str, Neighbor] = {}
        for part in parts:
            neighbor = self._known.get(part)
            if neighbor is None:
                one = self._parse(part)
                if len(one) != 1:
                    raise ConfError(f"{part.splitlines()[0]} is not one neighbor")
                neighbor = one[0]
            if part in known:
                raise ConfError(f"neighbor {neighbor.address} is there twice")
            known[part] = neighbor
        self._known = known
        return list(known.values())
