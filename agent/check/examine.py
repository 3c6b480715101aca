"""`tortiectl node checksystem`: everything a host needs, asked for in one go. Reads only.

Each part stands by itself: one that fails, hangs or may not look becomes a line, and the others go on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from agent import settings as settings_module
from agent.check import etcd, far, kernel, netlink, node, programs, routes
from agent.check.asked import Agent, ask_agent
from agent.check.etcd import Held
from agent.check.finding import Finding, fail, ok, unseen, warn
from agent.check.netlink import Network
from agent.check.proc import Proc
from agent.settings import Settings
from agent.settings_values import SettingsError
from felix_like.datastore.kube.access import find_access
from felix_like.model.address import Address, IpVersion

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds for one part; its requests have shorter ones of their own."""
NOBODY = Network((), (), False, "")


async def examine(
    environ: Mapping[str, str] = os.environ, calicoctl_file: str | None = None, proc: Proc | None = None
) -> list[Finding]:
    """All findings, in the order in which a person should read them."""
    found: list[Finding] = []
    settings: Settings | None = None
    try:
        settings = settings_module.load(environ, hostname=socket.gethostname(), calicoctl_file=calicoctl_file)
    except SettingsError as error:
        if os.geteuid() != 0 and "cannot be read" in str(error):
            found.append(unseen("settings", f"{error}; without them etcd and the broker are not asked"))
        else:
            found.append(fail("settings", str(error), "the agent does not start with it"))
    except OSError as error:
        found.append(unseen("settings", str(error)))
    else:
        found.append(ok("settings", f"usable; this is node {settings.nodename}"))
        found += [warn("settings", sentence) for sentence in settings.not_used]
    return [*found, *await Examination(proc or Proc(), environ).run(settings)]


class Examination:
    """The parts, each with its own lines; what could not be asked is a line, too."""

    def __init__(self, proc: Proc, environ: Mapping[str, str]) -> None:
        self._proc = proc
        self._environ = environ
        self._troubles: list[Finding] = []

    async def run(self, settings: Settings | None) -> list[Finding]:
        """Without settings: what can be said without them."""
        asked = [
            self._part("network", asyncio.to_thread(netlink.read), NOBODY),
            self._part(
                "Kubernetes API",
                far.kubernetes(settings.kubernetes if settings is not None else find_access(self._environ)),
                [],
            ),
        ]
        network: Network
        cluster: list[Finding]
        if settings is None:
            network, cluster = await asyncio.gather(*asked)
            return [*self._local(None, network, Agent.unknown(), None, {}), *self._troubles, *cluster]
        network, cluster, (store, held), broker, agent = await asyncio.gather(
            *asked,
            self._part("etcd", etcd.check(settings.etcd), ([], None)),
            self._part("MQTT broker", far.broker(settings.broker), []),
            self._part("agent", asyncio.to_thread(ask_agent, settings.run_dir), Agent.unknown()),
        )
        registered: list[Finding] = []
        own: dict[IpVersion, Address] = {}
        if held is not None and network is not NOBODY:
            # A host name in can-reach= is looked up.
            work = asyncio.to_thread(node.check, settings, held, network.links)
            registered, own = await self._part("node", work, ([], {}))
        local = self._local(settings, network, agent, held, own)
        return [*agent.findings(), *local, *store, *registered, *broker, *cluster, *self._troubles]

    def _local(
        self,
        settings: Settings | None,
        network: Network,
        agent: Agent,
        held: Held | None,
        own: Mapping[IpVersion, Address],
    ) -> list[Finding]:
        wants_ipv6 = 6 in own or etcd.wants_ipv6(held) if held is not None else None
        place = kernel.Place(own.get(4), own.get(6), wants_ipv6, len(held.nodes) if held else None)
        found: list[Finding] = []
        if network is not NOBODY:
            found += self._lines("kernel", lambda: kernel.check(self._proc, network, place, kernel.tcp_md5))
        found += self._lines("programs", lambda: programs.check(self._proc, agent.processes))
        if settings is not None:
            agents = programs.ours(self._proc.processes(), "tortie-agent", agent.processes)
            found += self._lines(
                "directories",
                lambda: programs.directories(
                    settings.run_dir, settings.state_dir, settings.secrets_dir, agents
                ),
            )
        if settings is not None and network is not NOBODY:
            pools = held.pools if held is not None else None
            found += self._lines(
                "routes", lambda: routes.check(network, settings.route_priority, agent.known, pools)
            )
        return found

    def _lines(self, name: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
        found: list[Finding] = []
        try:
            found.extend(work())
        except Exception as error:  # what one part does not expect must not cost the others
            found.append(unseen(name, _short(error)))
        return found

    async def _part(self, name: str, work: Coroutine[Any, Any, T], otherwise: T) -> Any:
        try:
            async with asyncio.timeout(PATIENCE):
                return await work
        except TimeoutError:
            self._troubles.append(unseen(name, f"it did not end within {PATIENCE:g} s"))
        except Exception as error:
            self._troubles.append(unseen(name, _short(error)))
        return otherwise


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
