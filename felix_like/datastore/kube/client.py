"""Raw access to the Kubernetes API: JSON objects out, sentences for whatever goes wrong.

    client = KubeClient(access)
    services = await client.get("/api/v1/services", {"limit": "500"})
    async with contextlib.aclosing(client.watch("/api/v1/services", {"resourceVersion": "7"})) as events:
        async for event in events: ...

Every request has a deadline. Credentials are read again when the API server refuses them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Any

from felix_like.datastore.kube.access import KubeAccess

NONE: Mapping[str, str] = MappingProxyType({})


class KubeClient:
    """One API server. Reads only. All methods raise the errors of `datastore.kube.errors`."""

    def __init__(self, access: KubeAccess, *, timeout: float = 15.0) -> None:
        """`timeout`: seconds for a request that is no watch."""
        self.access = access
        self._timeout = timeout

    async def get(self, path: str, params: Mapping[str, str] = NONE) -> dict[str, Any]:
        """The object or the list at a path such as /api/v1/services."""
        raise NotImplementedError

    def watch(self, path: str, params: Mapping[str, str]) -> AsyncGenerator[dict[str, Any], None]:
        """Watch events {"type": …, "object": …} as the server sends them, ERROR events raised as errors.

        Ends when the server ends it (timeoutSeconds). Raises Unreachable for a connection that breaks, and
        for one over which nothing has come for longer than timeoutSeconds and some patience.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connections."""
        raise NotImplementedError
