"""`tortie-agent`: the wiring, on one screen.

etcd (and Kubernetes) -> informer -> calc graph -> sinks (kernel routes, exabgp.conf, the speaker's adverts);
what the speaker learns joins at the graph. Everything runs in one task group: a sink that fails is tried
again, a bug in the calculation ends the process loudly, and the kernel keeps forwarding either way.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from agent import settings as settings_module
from agent.calculation import Calculation
from agent.collector import collect_rarely
from agent.command_line import read_command_line
from agent.follow import Follower
from agent.keep import keep
from agent.kubernetes import kubernetes_of
from agent.life import Stop, failing_callbacks, live
from agent.logs import set_up_logging
from agent.outlets import CONVERGENCE_BUCKETS, Outlets
from agent.readiness import Readiness
from agent.registration import CannotRegister, Registration
from agent.run_dir import claimed
from agent.sessions import Sessions
from agent.settings import Settings
from agent.settings_values import SettingsError
from agent.sinks.kernel import KernelSink
from agent.sinks.monitor import RouteMonitor
from agent.sinks.nexthops import NextHopResolver
from agent.sinks.ownership import Mark
from agent.sinks.speaker import SpeakerLink
from agent.sinks.speaker_conf import SpeakerConfSink
from agent.speaker.protocol import ConfigApplied
from agent.status import Status, own_version
from agent.timed import Timed
from agent.web.exposition import Histogram
from bird_config.publish import Publisher
from bird_config.validator import WarmValidator
from felix_like.calc.graph import CalcGraph, OriginMode
from felix_like.datastore.client import Client
from felix_like.model.verdict import Refusal

log = logging.getLogger("tortie.agent")

RELOAD_PATIENCE = 10.0
"""Seconds a speaker may take to read its file before other work goes on."""


def main() -> None:
    """The command. Exit status 1 and one sentence for a setting or a state that makes no start possible."""
    read_command_line(None, own_version())
    try:
        settings = settings_module.load(os.environ, hostname=socket.gethostname())
        set_up_logging(settings.log_level)
        collect_rarely()
        faulthandler.enable()  # where it hung, when a watchdog ends it with SIGABRT
        with claimed(settings.run_dir):
            asyncio.run(run(settings))
    except* (SettingsError, CannotRegister, OSError) as group:
        for error in leaves(group):
            print(f"tortie-agent: {error}", file=sys.stderr)
        sys.exit(1)


async def run(settings: Settings) -> None:
    """The agent's life, until SIGTERM or SIGINT. Routes and sessions stay behind it."""
    stop = Stop()
    for sentence in settings.not_used:
        log.warning("%s", sentence)
    monitor = RouteMonitor()
    mark = Mark(metric=settings.route_priority)
    kernel = KernelSink(monitor, mark=mark)
    graph = CalcGraph(
        settings.local_node,
        origin_validation=OriginMode(settings.origin_validation),
        kubernetes=settings.kubernetes is not None,
    )
    link = SpeakerLink(settings.run_dir / "speaker.sock", lambda event: sessions.hear(event))
    next_hops = NextHopResolver(monitor, lambda states: calculation.next_hops_changed(states), mark=mark)
    convergence = Histogram(CONVERGENCE_BUCKETS)
    timed = Timed(
        kernel, told_at=lambda: calculation.told_at, clock=time.monotonic, observe=convergence.observe
    )
    calculation = Calculation(graph, clock=time.monotonic, kernel=timed, speaker=link, next_hops=next_hops)
    sessions = Sessions(calculation, time.monotonic)
    validator = WarmValidator()
    publisher = Publisher(settings.run_dir / "exabgp.conf", validator)
    conf = SpeakerConfSink(calculation.desired, publisher, lambda path: reload(link, conf, path))
    client = Client(settings.etcd)
    registration = Registration(client, settings)
    troubles: dict[str, str | None] = {}
    kubernetes = kubernetes_of(
        settings, calculation, reread=lambda: follower.reread_secrets(), wall=time.time
    )
    follower = Follower(
        client,
        calculation,
        snapshot_file=settings.state_dir / "last-good-snapshot",
        secrets=kubernetes.passwords,
        wall=time.time,
        told=kubernetes.look,
    )
    status = Status(
        node=settings.nodename,
        started=time.time(),
        endpoints=settings.etcd.endpoints,
        wall=time.time,
        calculation=calculation,
        follower=follower,
        sessions=sessions,
        kernel=kernel,
        link=link,
        conf=conf,
        kubernetes=kubernetes.status,
        own=lambda: (
            *registration.refusals(),
            *complaints(troubles),
            *kubernetes.refusals(),
            *outlets.refusals(),
        ),
    )
    readiness = Readiness(calculation, up=sessions.is_up, pending=status.pending_routes, clock=time.monotonic)
    outlets = Outlets(settings, status, readiness, convergence)
    log.info("tortie-agent %s starts on node %s", own_version(), settings.nodename)
    next_hops.start()
    try:
        work = {
            "datastore": follower.run(),
            "last good snapshot": follower.copy.run(),
            "passwords": follower.watch_secrets(),
            "speaker link": link.run(),
            kernel.name: keep(timed, tell=troubles.__setitem__),
            conf.name: keep(conf, tell=troubles.__setitem__),
            **kubernetes.work(),
            **outlets.work(),
        }
        await live(stop, {"node registration": registration.run(), "callbacks": failing_callbacks()}, work)
    finally:
        log.info("tortie-agent stops; routes and sessions stay")
        stop.hurry()
        outlets.close()
        await client.close()
        await kubernetes.close()
        await validator.close()
        kernel.close()
        next_hops.close()
        monitor.close()


async def reload(link: SpeakerLink, conf: SpeakerConfSink, path: Path) -> str | None:
    """Have the speaker read its file. One that is away or slow answers later, and is asked again if it
    refuses."""
    asked = asyncio.ensure_future(link.reload(path))
    done, _ = await asyncio.wait({asked}, timeout=RELOAD_PATIENCE if link.state.state == "connected" else 0)
    if done:
        return asked.result().error

    def late(answer: asyncio.Future[ConfigApplied]) -> None:
        if not answer.cancelled() and answer.result().error:
            conf.tell_again()

    asked.add_done_callback(late)
    return None


def complaints(troubles: Mapping[str, str | None]) -> list[Refusal]:
    """The sinks that do not work at all, by name."""
    return [Refusal(name, trouble) for name, trouble in troubles.items() if trouble is not None]


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions inside nested groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    main()
