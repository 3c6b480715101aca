"""`tortie-controllers`: one leader among its replicas does what is to be done once for the whole cluster."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import socket
import sys
from importlib.metadata import PackageNotFoundError, version

from agent.command_line import read_command_line
from agent.controllers import registry
from agent.controllers import settings as settings_module
from agent.controllers.controller import run_all
from agent.controllers.deeds import Deeds
from agent.controllers.doors import Doors
from agent.controllers.election import Election, Leadership
from agent.controllers.registry import Tools
from agent.controllers.settings import ControllerSettings
from agent.life import Stop, failing_callbacks, lasting
from agent.logs import set_up_logging
from agent.settings_values import SettingsError
from felix_like.datastore.client import Client
from felix_like.datastore.errors import EtcdError
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.errors import KubeError

log = logging.getLogger("tortie.controllers")


def main() -> None:
    """The command. Exit status 1 and one sentence for a setting that makes no start possible."""
    names = registry.names()
    read_command_line(
        None,
        own_version(),
        prog="tortie-controllers",
        description="Leads, or stands by: collects unused addresses, syncs and removes Nodes, and copies\n"
        "Kubernetes' policies, namespaces, service accounts and pod labels into Calico's data.\n"
        "Runs until SIGTERM or SIGINT, and hands over to another replica at once.",
        settings=settings_module.table(names),
    )
    try:
        settings = settings_module.load(os.environ, names=names, hostname=socket.gethostname())
    except SettingsError as error:
        print(f"tortie-controllers: {error}", file=sys.stderr)
        sys.exit(1)
    set_up_logging(settings.log_level)
    faulthandler.enable()
    asyncio.run(run(settings))


def own_version() -> str:
    try:
        return version("tortie")
    except PackageNotFoundError:
        return "unknown"


async def run(settings: ControllerSettings) -> None:
    """The process's life."""
    stop = Stop()
    for sentence in settings.not_used:
        log.warning("%s", sentence)
    log.info("tortie-controllers %s starts as %s", own_version(), settings.identity)
    if settings.dry_run:
        log.info("this is a dry run: nothing is written but the leader's key")
    etcd = Client(settings.etcd)
    kube = KubeClient(settings.kube) if settings.kube is not None else None
    deeds = Deeds(dry_run=settings.dry_run)
    tools = Tools(settings=settings, etcd=etcd, kube=kube, deeds=deeds)
    controllers = list(registry.chosen(tools, say=lambda sentence: log.warning("%s", sentence)))
    election = Election(etcd, settings.identity, ttl=settings.lease)

    async def lead(leadership: Leadership) -> None:
        try:
            if not controllers:
                await asyncio.get_running_loop().create_future()
            await run_all(controllers, leadership, outages=(EtcdError, KubeError), tell=deeds.trouble)
        finally:
            deeds.troubles.clear()
            deeds.gauges.clear()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(failing_callbacks(), name="callbacks"),
                group.create_task(lasting(election.run(lead), "election"), name="election"),
            ]
            if settings.health_address is not None:
                doors = Doors(settings.health_address, standing=lambda: election.standing, deeds=deeds)
                tasks.append(group.create_task(lasting(doors.run(), "doors"), name="doors"))
            stop.on_signals(tasks)
    finally:
        log.info("tortie-controllers stops")
        stop.hurry()
        if kube is not None:
            await kube.close()
        await etcd.close()


if __name__ == "__main__":
    main()
