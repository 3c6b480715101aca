"""`tortiectl ipam check`: what garbage collection sees, without touching anything."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from agent.cli.errors import Failed, printable
from agent.cli.store import with_etcd
from agent.cli.tables import columns

if TYPE_CHECKING:
    from felix_like.calc.ipam_report import Report
    from felix_like.datastore.client import Client
    from felix_like.model.address import Prefix
    from felix_like.model.ipam_use import Cluster, IpamState

DEFAULT_GRACE = 900.0
EPILOG = """\b
Examples:
  tortiectl ipam check
  tortiectl ipam check --kubeconfig ~/.kube/config
  tortiectl ipam check --show-all-ips
  tortiectl ipam check -o json

Nothing is changed: tortie-controllers does that. What looks unused at one look is
a leak candidate; it is released when it has been unused for the whole grace.
Exit status 1 when there is anything to say."""


@click.command(epilog=EPILOG)
@click.option("--kubeconfig", metavar="FILE", help="How to reach the Kubernetes API [default: KUBECONFIG].")
@click.option("--show-all-ips", is_flag=True, help="Show every address and what it is, too.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_obj
def check(config: str | None, kubeconfig: str | None, show_all_ips: bool, output: str) -> None:
    """Look for leaked addresses and for what is inconsistent in IPAM's data."""
    state, pools, cluster, source = with_etcd(config, lambda etcd: _read(etcd, kubeconfig))
    found = _report(state, pools, cluster)
    if output == "json":
        click.echo(json.dumps(_document(found, source), indent=2))
    else:
        click.echo("\n".join(_text(found, state, source, show_all_ips=show_all_ips)))
    if found.problems:
        raise SystemExit(1)


async def _read(etcd: Client, kubeconfig: str | None) -> tuple[IpamState, list[Prefix], Cluster | None, str]:
    """All there is to know, and a sentence about Kubernetes."""
    from felix_like.datastore.ipam import Ipam
    from felix_like.datastore.ipam_listing import ipam_state
    from felix_like.datastore.kube.access import find_access

    # IPAM first: an address that is given out meanwhile must not look like nobody's.
    state = await ipam_state(etcd)
    access = find_access({**os.environ, **({"KUBECONFIG": kubeconfig} if kubeconfig else {})})
    if access is None:
        cluster, source = None, "not asked (no KUBECONFIG): which pods live is not known"
    else:
        cluster = await _cluster(access)
        source = f"{access.source}: {len(cluster.nodes)} nodes, {len(cluster.pods)} pods"
    return state, [pool.cidr for pool in await Ipam(etcd).pools()], cluster, source


async def _cluster(access: Any) -> Cluster:
    """Raises Failed with a sentence."""
    from agent.controllers.kube_view import NODES, PODS, KubeNode
    from felix_like.datastore.kube.client import KubeClient
    from felix_like.datastore.kube.errors import KubeError
    from felix_like.model.ipam_use import Cluster, PodUse

    client = KubeClient(access)
    nodes, pods = set(), {}
    try:
        for collection in (NODES, PODS):
            more = ""
            while True:
                params = {"limit": "500", **({"continue": more} if more else {})}
                page = await client.get(collection.path, params)
                for raw in page.get("items") or ():
                    seen = collection.decode(collection.path, collection.trim(raw))
                    if isinstance(seen, KubeNode):
                        nodes.add(seen.name)
                    elif isinstance(seen, PodUse):
                        pods[seen.namespace, seen.name] = seen
                more = (page.get("metadata") or {}).get("continue") or ""
                if not more:
                    break
    except KubeError as error:
        raise Failed(str(error)) from None
    finally:
        await client.close()
    return Cluster(nodes=frozenset(nodes), pods=pods)


def _report(state: IpamState, pools: list[Prefix], cluster: Cluster | None) -> Report:
    from datetime import UTC, datetime, timedelta

    from felix_like.calc.ipam_report import report

    recent = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    grace = DEFAULT_GRACE if state.leak_grace is None else state.leak_grace
    return report(state, pools, cluster, grace=grace, claimed_before=recent)


def _text(found: Report, state: IpamState, source: str, *, show_all_ips: bool) -> list[str]:
    lines = [f"Kubernetes: {source}"]
    lines.append(
        f"IPAM: {len(state.blocks)} blocks, {len(found.judged)} addresses allocated, "
        f"{len(state.handles)} handles, {len(state.affinities)} block affinities"
    )
    counts = Counter(str(one.standing) for one in found.judged)
    lines.append(
        "Addresses: " + (", ".join(f"{n} {standing}" for standing, n in sorted(counts.items())) or "none")
    )
    alone = {one.reason for one in found.judged if str(one.standing) == "left alone"}
    if len(alone) == 1:
        lines.append(f"Left alone: {printable(alone.pop())}")
    lines += [f"Note: {why}" for why in (state.locked, state.unknown_grace) if why]
    if show_all_ips:
        rows = [
            (str(one.allocation.address), str(one.standing), one.allocation.node, one.reason)
            for one in sorted(found.judged, key=lambda one: one.allocation.address)
        ]
        lines += ["", columns(("ADDRESS", "STANDING", "NODE", "WHY"), rows)]
    rows3 = [(str(problem.kind), problem.subject, problem.reason) for problem in found.problems]
    lines += ["", columns(("PROBLEM", "WHAT", "WHY"), rows3)] if rows3 else []
    lines += ["", _verdict(len(found.problems))]
    return lines


def _verdict(problems: int) -> str:
    return "No problem found." if not problems else f"{problems} problem{'s' * (problems > 1)} found."


def _document(found: Report, source: str) -> dict[str, Any]:
    return {
        "kubernetes": source,
        "problems": [
            {"kind": str(problem.kind), "subject": printable(problem.subject), "reason": problem.reason}
            for problem in found.problems
        ],
        "addresses": [
            {
                "address": str(one.allocation.address),
                "standing": str(one.standing),
                "reason": one.reason,
                "handle": one.allocation.handle,
                "node": one.allocation.node,
            }
            for one in found.judged
        ],
    }
