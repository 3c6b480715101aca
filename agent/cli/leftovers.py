"""`tortiectl node leftovers`: the routes that BIRD, or Tortie, has left on this node, and their end."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli import agentsocket, birdsocket
from agent.cli.errors import Failed, printable
from agent.cli.tables import columns

if TYPE_CHECKING:
    from agent.cli.leftover_routes import Heir, Leftover
    from agent.netlink.rtnetlink import KernelRoute, Operation
    from felix_like.model.desired import Route, RouteKind

BIRD, TORTIE = "BIRD", "Tortie"
LOOK_AGAIN = 3.0
"""Seconds after which BIRD would have put back what it still wants: it reads the kernel every 2 s."""

EPILOG = """\b
Examples:
  tortiectl node leftovers                        what BIRD left, Tortie running now
  tortiectl node leftovers --remove               and remove what Tortie has the same
  tortiectl node leftovers --of tortie --remove   the way back: BIRD runs again

\b
Removed is only a route whose destination the present agent has by the same way; one that is in
the way of the present agent's own becomes it in one step. No packet is lost either way. All
others stay, with the reason. Removing needs root, looking does not.
"""


@click.command(epilog=EPILOG)
@click.option("--of", "whose", type=click.Choice(["bird", "tortie"]), default="bird", show_default=True)
@click.option("--remove", is_flag=True, help="Remove those that the present agent has the same.")
@click.option(
    "--metric",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Of Tortie's routes (--of tortie).",
)
@click.option(
    "--bird-sockets",
    "folder",
    type=click.Path(path_type=Path),
    default=birdsocket.CALICO,
    show_default=True,
    help="Folder of BIRD's bird.ctl and bird6.ctl.",
)
def leftovers(whose: str, remove: bool, metric: int, folder: Path) -> None:
    """List the routes that calico-node's BIRD (or Tortie) left on this node, and remove what is safe."""

    def find() -> list[Leftover]:
        return of_bird() if whose == "bird" else of_tortie(metric, folder)

    if remove:
        (refuse_bird if whose == "bird" else refuse_tortie)(folder)
    found = find()
    old, new = (BIRD, TORTIE) if whose == "bird" else (TORTIE, BIRD)
    if not found:
        click.echo(f"No route of {old}'s is left on this node.")
        return
    click.echo(render(found, old))
    safe = [one for one in found if one.verdict]
    kept = len(found) - len(safe)
    if not remove:
        click.echo(f"\n{len(safe)} of {len(found)} may go: --remove does it.")
    else:
        problems = take_away(safe)
        # BIRD writes again what it wants; who does not run, writes nothing.
        if safe and whose == "bird" and not problems:
            time.sleep(LOOK_AGAIN)
            if back := {one.route for one in find()} & {one.route for one in safe}:
                raise Failed(f"{len(back)} routes came back: BIRD still runs on this node; end it first")
        click.echo(f"\n{len(safe) - len(problems)} of {len(found)} removed; {new} has them.")
        for line in problems:
            click.echo(printable(line), err=True)
        if problems:
            raise Failed(f"{len(problems)} could not be removed")
    if kept:
        click.echo(
            f"{kept} stay: packets to them would go another way, or nowhere. If that is right, remove them\n"
            "with 'ip route del' as it stands in 'ip route show proto bird' (proto bgp)."
        )


def render(found: Sequence[Leftover], old: str) -> str:
    """One line for each."""
    header = ("DESTINATION", f"{old.upper()}'S WAY", "METRIC", "MAY GO", "WHY")
    return columns(
        header,
        [
            (
                str(one.route.key.prefix),
                spelled(one.route),
                str(one.route.key.priority),
                "yes" if one.verdict else "no",
                one.verdict.reason or "",
            )
            for one in found
        ],
        right=frozenset({2}),
    )


def spelled(route: Route) -> str:
    """A route's ways as `ip route` writes them."""
    if route.kind == "blackhole":
        return "blackhole"
    return ", ".join(
        (f"via {hop.gateway} " if hop.gateway is not None else "") + f"dev {_interface(hop.ifindex)}"
        for hop in route.next_hops
    )


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"


# -- BIRD has gone, Tortie runs --------------------------------------------------------------------


def of_bird() -> list[Leftover]:
    """BIRD's routes, judged by what this node's agent wants. Raises Failed when it does not answer."""
    from agent.cli.leftover_routes import by_prefix, judge
    from agent.netlink.neighbours import neighbours
    from felix_like.model.desired import PROTO_BIRD

    answer = agentsocket.ask(agentsocket.find(None), {"ask": "kernel"}, timeout=30.0)
    heirs = by_prefix(_heir(entry) for entry in answer.get("kernel", []))
    return judge(
        _dumped(PROTO_BIRD), lambda route: heirs.get(route.key.prefix), TORTIE, neighbours(), _dumped()
    )


def _heir(entry: dict[str, Any]) -> Heir:
    from agent.cli.leftover_routes import Heir
    from felix_like.model.address import Address, Prefix
    from felix_like.model.desired import KernelNextHop, Route, RouteKey

    key = RouteKey(Prefix.parse(entry["prefix"]), int(entry["metric"]), int(entry["table"]))
    hops = tuple(
        KernelNextHop(Address.parse(hop["gateway"]) if hop["gateway"] else None, int(hop["interface"]))
        for hop in entry["next_hops"]
    )
    kind: RouteKind = "blackhole" if entry["kind"] == "blackhole" else "unicast"
    return Heir(Route(key, kind, int(entry["protocol"]), hops), bool(entry["installed"]))


def refuse_bird(folder: Path) -> None:
    """Raises Failed unless Tortie's agent knows what it does, and BIRD has gone."""
    if any(birdsocket.answers(folder, version) for version in birdsocket.SOCKETS):
        raise Failed(f"BIRD still runs on this node ({folder}): end it first, or it puts its routes back")
    status = agentsocket.ask(agentsocket.find(None), {"ask": "status"})
    for part, wanted in (("datastore", "in-sync"), ("speaker", "connected")):
        state = status.get(part, {}).get("state")
        if state != wanted:
            raise Failed(f"the agent's {part} is {state}, not {wanted}: it may not know all routes yet")


# -- Tortie has gone, BIRD runs --------------------------------------------------------------------


def of_tortie(metric: int, folder: Path) -> list[Leftover]:
    """Tortie's routes, judged by BIRD's in the kernel, and by what BIRD says where ours are in their way."""
    from agent.cli.leftover_routes import Heir, by_prefix, judge
    from agent.netlink.neighbours import neighbours
    from felix_like.model.desired import PROTO_BGP, PROTO_BIRD

    in_kernel = by_prefix(
        Heir(route, installed=True) for seen in _dumped(PROTO_BIRD) if (route := seen.as_wanted()) is not None
    )
    ours = [seen for seen in _dumped(PROTO_BGP) if seen.key.priority == metric]
    return judge(
        ours,
        lambda route: in_kernel.get(route.key.prefix) or _wanted_by_bird(route, folder),
        BIRD,
        neighbours(),
        _dumped(),
    )


def _wanted_by_bird(route: Route, folder: Path) -> Heir | None:
    """The route that BIRD would write if ours were not there; None when it has none but ours."""
    from agent.cli.leftover_routes import Heir
    from felix_like.model.desired import PROTO_BIRD, KernelNextHop, Route

    try:
        chosen = birdsocket.chosen(folder, route.key.prefix)
    except OSError as error:
        raise Failed(f"BIRD cannot be asked at {folder}: {error.strerror or error}; does it run?") from None
    if chosen is None or chosen.protocol.startswith(("kernel", "direct")):
        return None
    hops = tuple(
        sorted(
            KernelNextHop(gateway, index)
            for gateway, name in chosen.ways
            if (index := _index(name)) is not None
        )
    )
    return Heir(
        Route(route.key, "blackhole" if chosen.blackhole else "unicast", PROTO_BIRD, hops), installed=False
    )


def _index(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def refuse_tortie(_folder: Path) -> None:
    """Raises Failed while the agent runs: it would put its routes back."""
    try:
        path = agentsocket.find(None)
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) != 0:
                return
    except Failed:
        return
    raise Failed(f"tortie-agent still runs on this node ({path}): end it first, or it puts its routes back")


# -- the kernel ------------------------------------------------------------------------------------


def _dumped(protocol: int = 0) -> Iterator[KernelRoute]:
    """The main table's routes; 0: whosever."""
    from agent.netlink.sockets import dump_routes
    from felix_like.model.desired import MAIN_TABLE

    for family in (socket.AF_INET, socket.AF_INET6):
        for route in dump_routes(family, protocol, MAIN_TABLE):
            if protocol in (0, route.protocol):
                yield route


def take_away(safe: Sequence[Leftover]) -> list[str]:
    """Remove them, each without a moment in which its packets have no way. Sentences for what failed."""
    from agent.netlink.sockets import RouteWriter

    writer = RouteWriter()
    try:
        return [
            f"{one.route.key.prefix}: {reason}"
            for one in safe
            if (reason := taken_away(one, writer.write)) is not None
        ]
    finally:
        writer.close()


Write = Callable[[Sequence[tuple[tuple[int, int], "Route"]]], list[Any]]


def taken_away(one: Leftover, write: Write) -> str | None:
    """None when it is gone. Raises Failed for who may not."""
    from agent.netlink.rtnetlink import DELETE

    for step in steps(one):
        for failure in write([step]):
            if failure.errno == errno.EPERM:
                raise Failed("the kernel lets only root change routes: run it as root (CAP_NET_ADMIN)")
            # The new one is there, or the old one gone, in the meantime.
            meanwhile = (errno.ESRCH, errno.ENOENT) if step[0] == DELETE else (errno.EEXIST,)
            if failure.errno not in meanwhile:
                return str(failure.reason)
    return None


def steps(one: Leftover) -> list[tuple[Operation, Route]]:
    """The messages, in order.

    IPv4 has room for two routes with one prefix and metric: the new one is put behind, then the old one goes.
    IPv6 has not; there a replace is one step, and takes along whatever else hangs in that place.
    """
    from agent.netlink.rtnetlink import APPEND, DELETE, REPLACE

    heir = one.heir
    if heir is None or not one.in_the_way:
        return [(DELETE, one.route)]
    if one.route.key.prefix.version == 4:
        return [(APPEND, heir.route), (DELETE, one.route)]
    return [(REPLACE, heir.route)]
