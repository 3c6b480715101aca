"""Import ExaBGP without asking a name server.

It asks for this host's full name as it is imported, for a capability that nobody here offers. On a node that
cannot reach its name server, perhaps because the way there is a route of ours, that takes as long as the
resolver is patient: 10 seconds and more, before every first session.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_name_lookup() -> Iterator[None]:
    """Inside, a host's full name is the one it was asked for."""
    asks = socket.getfqdn
    socket.getfqdn = _as_it_is
    try:
        yield
    finally:
        socket.getfqdn = asks


def _as_it_is(name: str = "") -> str:
    return name or socket.gethostname()
