"""The copying controllers in a process of its own, for tests that kill it.

python -m tests.support.copier ENDPOINT KUBECONFIG IDENTITY TTL
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.controllers.controller import run_all
from agent.controllers.deeds import Deeds
from agent.controllers.election import Election, Leadership
from agent.controllers.policies import DUTIES, copying_controller
from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.kube.access import KubeAccess
from felix_like.datastore.kube.client import KubeClient


async def main(endpoint: str, kubeconfig: str, identity: str, ttl: int) -> None:
    kube = KubeClient(KubeAccess(Path(kubeconfig)))

    async def lead(leadership: Leadership) -> None:
        await run_all([copying_controller(name, kube, Deeds()) for name in DUTIES], leadership)

    async with Client(EtcdConfig(endpoints=(endpoint,))) as client:
        await Election(client, identity, ttl=ttl).run(lead)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
