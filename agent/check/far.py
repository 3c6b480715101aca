"""What else the agent may need from the network: the MQTT broker, the Kubernetes API."""

from __future__ import annotations

import asyncio
import time

from agent.check.finding import Finding, fail, ok, warn
from agent.telemetry.broker import Broker, BrokerError, client, why
from felix_like.datastore.kube.access import KubeAccess

PATIENCE = 6.0
RIGHTS = "the rights that the agent needs are in deploy/kubernetes/base"


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


async def kubernetes(access: KubeAccess | None) -> list[Finding]:
    """Only where a kubeconfig or a service account is: else there is no Kubernetes to ask."""
    if access is None:
        return [ok("Kubernetes API", "none is set (KUBECONFIG, or a pod's service account)")]
    from felix_like.datastore.kube.client import KubeClient
    from felix_like.datastore.kube.errors import Forbidden, KubeError

    began = time.monotonic()
    kube = KubeClient(access, timeout=PATIENCE)
    try:
        version = str((await kube.get("/version")).get("gitVersion", "unknown"))[:40]
        took = time.monotonic() - began
        # Whoever may ask for the version may be anybody.
        await kube.get("/api/v1/nodes", {"limit": "1"})
    except Forbidden as error:
        return [warn("Kubernetes API", f"{version}, by {access.source}: {error}", RIGHTS)]
    except KubeError as error:
        return [fail("Kubernetes API", f"{access.source}: {error}")]
    finally:
        await kube.close()
    return [ok("Kubernetes API", f"{version}, by {access.source}, answers within {took * 1000:.0f} ms")]
