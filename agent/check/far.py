"""What else the agent may need from the network: the MQTT broker, the Kubernetes API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from agent.check.finding import Finding, fail, ok, warn
from agent.telemetry.broker import Broker, BrokerError, client, why

PATIENCE = 6.0


async def broker(configured: Broker | None) -> list[Finding]:
    """One connection with its own client identifier: the agent's session is left alone."""
    if configured is None:
        return [ok("MQTT broker", "none is set (TORTIE_MQTT_URL)")]
    import aiomqtt

    began = time.monotonic()
    todo = "the agent forwards without it; nobody sees this node in 'tortiectl top'"
    try:
        tls = await asyncio.to_thread(configured.tls)
        async with asyncio.timeout(PATIENCE), client(configured, None, tls=tls):
            took = time.monotonic() - began
        return [ok("MQTT broker", f"{configured.url} lets us in within {took * 1000:.0f} ms")]
    except TimeoutError:
        reason = f"does not answer within {PATIENCE:g} s"
    except (aiomqtt.MqttError, OSError) as error:
        reason = why(error, configured)
    except BrokerError as error:
        reason = str(error)
    return [warn("MQTT broker", f"{configured.url}: {reason}", todo)]


async def kubernetes(environ: Mapping[str, str]) -> list[Finding]:
    """Only where a kubeconfig or a service account is: else there is no Kubernetes to ask."""
    from felix_like.datastore.kube.access import find_access

    access = find_access(environ)
    if access is None:
        return [ok("Kubernetes API", "none is set (KUBECONFIG, or a pod's service account)")]
    from felix_like.datastore.kube.client import KubeClient
    from felix_like.datastore.kube.errors import KubeError

    began = time.monotonic()
    kube = KubeClient(access, timeout=PATIENCE)
    try:
        answer = await kube.get("/version")
    except KubeError as error:
        return [fail("Kubernetes API", f"{access.source}: {error}")]
    finally:
        await kube.close()
    took = time.monotonic() - began
    version = str(answer.get("gitVersion", "unknown"))[:40]
    return [ok("Kubernetes API", f"{version}, by {access.source}, answers within {took * 1000:.0f} ms")]
