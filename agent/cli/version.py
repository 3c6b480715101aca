"""`tortiectl version`: ours, the agent's, the cluster's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from agent.cli import agentsocket
from agent.cli.errors import Failed
from agent.cli.node import node_option
from agent.cli.store import resources, with_etcd

if TYPE_CHECKING:
    from felix_like.datastore.client import Client

EPILOG = """\b
Examples:
  tortiectl version
  tortiectl version --client      without asking anybody
"""


@click.command(epilog=EPILOG)
@click.option("--client", is_flag=True, help="Only tortiectl's own version.")
@node_option
@click.pass_obj
def version(config: str | None, client: bool, name: str | None) -> None:
    """Show the versions of tortiectl, the agent and the cluster."""
    click.echo(f"Client Version:     {own_version()}")
    if client:
        return
    try:
        answer = agentsocket.ask(agentsocket.find(name), {"ask": "status"})
        click.echo(
            f"Agent Version:      {answer.get('agent', {}).get('version', 'unknown')} ({answer.get('node')})"
        )
        click.echo(f"ExaBGP Version:     {answer.get('speaker', {}).get('exabgp', 'unknown')}")
    except Failed as error:
        click.echo(f"Agent Version:      unknown: {error.format_message()}")
    if config or os.environ.get("ETCD_ENDPOINTS") or os.environ.get("CALICO_ETCD_ENDPOINTS"):
        try:
            click.echo("\n".join(with_etcd(config, _cluster)))
        except Failed as error:
            click.echo(f"Cluster Version:    unknown: {error.format_message()}")


def own_version() -> str:
    """Of the installed distribution."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("tortie")
    except PackageNotFoundError:
        return "unknown: the package is not installed ('make setup')"


async def _cluster(etcd: Client) -> list[str]:
    for stored in await resources(etcd, "clusterinformations"):
        if stored.name == "default":
            spec = stored.spec
            return [
                f"Cluster Version:    {spec.get('calicoVersion') or 'unknown'}",
                f"Cluster Type:       {spec.get('clusterType') or 'unknown'}",
                f"Cluster GUID:       {spec.get('clusterGUID') or 'unknown'}",
                f"Datastore ready:    {str(spec.get('datastoreReady', 'unknown')).lower()}",
            ]
    return ["Cluster Version:    unknown: the datastore has no ClusterInformation 'default'"]
