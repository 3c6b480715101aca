"""The fault kit: what is done to the lab, what should come of it, and what came of it.

A fault that should not be felt is judged by pings between pods at 20 a second: not one may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agent.lab.compose.plan import HOLD_TIME, RESTART_TIME, node_names, planned
from agent.lab.compose.world import Stream, World
from agent.telemetry.broker import KEEPALIVE

WHOLE_SECONDS = 60.0
"""At most until everything is whole again."""
NOTICE_SECONDS = HOLD_TIME + RESTART_TIME + 16.0
"""At most until a silent peer's routes are gone: it might be restarting, and the machine be busy."""
SILENCE = f"after the hold and the restart time ({HOLD_TIME} + {RESTART_TIME} s)"
WILL_SECONDS = 1.5 * KEEPALIVE + 15.0
"""At most until a broker takes a silent client for dead (MQTT 5.0 section 3.1.2.10), and tells its will."""
PAUSE_SECONDS = 5.0
AFTER_SECONDS = 1.0
"""Between a fault and the first look: what it breaks should have broken."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen, and whether it is what was expected."""

    good: bool
    seen: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One line of the kit. `play` leaves the lab whole, or raises LabError."""

    name: str
    expected: str
    play: Callable[[World], Outcome]


BETWEEN = (("node-1", "node-2"), ("node-2", "node-1"), ("node-1", "outside"))


def agent_dies(world: World) -> Outcome:
    before = world.look(["node-2"])["node-2"].since()
    with world.pings(*BETWEEN) as streams:
        world.engine.crash("node-1-agent")
        world.sleep(AFTER_SECONDS)
        took = world.wait(world.wrong, WHOLE_SECONDS)
    kept = world.look(["node-2"])["node-2"].since() == before
    sessions = "sessions kept" if kept else "sessions were reset"
    return _unfelt(streams, f"{sessions}, whole after {took:.1f} s", kept)


def speaker_dies(world: World) -> Outcome:
    before = world.look(["node-2"])["node-2"].since()
    with world.pings(*BETWEEN) as streams:
        world.engine.crash("node-1-speaker")
        world.sleep(AFTER_SECONDS)
        took = world.wait(world.wrong, WHOLE_SECONDS)
    anew = world.look(["node-2"])["node-2"].since() != before
    return _unfelt(streams, f"sessions {'anew' if anew else 'never lost?'}, whole after {took:.1f} s", anew)


def agent_hangs(world: World) -> Outcome:
    with world.pings(*BETWEEN) as streams, _paused(world, "node-1-agent"):
        world.sleep(PAUSE_SECONDS)
        silent = "error" in world.look(["node-1"])["node-1"].status
    took = world.wait(world.wrong, WHOLE_SECONDS)
    return _unfelt(streams, f"{'silent meanwhile, ' if silent else ''}whole after {took:.1f} s", silent)


def speaker_hangs(world: World) -> Outcome:
    with world.pings(("node-1", "node-3"), ("node-1", "node-2")) as (bystander, victim):
        with _paused(world, "node-2-speaker"):
            noticed = world.wait(
                lambda: list(_routes_via(world, "node-2", ["node-1", "node-3"])), NOTICE_SECONDS
            )
        took = world.wait(world.wrong, WHOLE_SECONDS)
    good = bystander.lost == 0 and victim.lost > 0
    seen = f"routes gone after {noticed:.1f} s, whole {took:.1f} s after; {bystander}, {victim}"
    return Outcome(good, seen)


def partition(world: World) -> Outcome:
    cut = planned("node-3")
    with world.pings(("node-1", "node-2"), ("node-1", "node-3")) as (bystander, victim):
        world.engine.unplug("node-3")
        try:
            noticed = world.wait(
                lambda: list(_routes_via(world, "node-3", ["node-1", "node-2"])), NOTICE_SECONDS
            )
            inside = world.look(["node-3"])["node-3"].status["datastore"]["state"]
            told = noticed + world.wait(lambda: list(_not_gone(world, "node-3")), WILL_SECONDS)
        finally:
            world.engine.plug_in("node-3", cut.ipv4, cut.ipv6)
        took = world.wait(world.wrong, WHOLE_SECONDS)
    good = bystander.lost == 0 and victim.lost > 0 and inside != "in-sync"
    seen = f"routes gone after {noticed:.1f} s, node-3 says '{inside}', the broker says 'gone' "
    seen += f"after {told:.1f} s, whole {took:.1f} s after; "
    return Outcome(good, f"{seen}{bystander}, {victim}")


def datastore_stops(world: World) -> Outcome:
    with world.pings(*BETWEEN) as streams:
        world.engine.act("kill", "etcd")
        try:
            said = world.wait(lambda: list(_still_in_sync(world)), NOTICE_SECONDS)
            world.sleep(PAUSE_SECONDS)
        finally:
            world.engine.act("start", "etcd")
        took = world.wait(world.wrong, WHOLE_SECONDS)
    return _unfelt(streams, f"every agent said so after {said:.1f} s, whole {took:.1f} s after")


def broker_stops(world: World) -> Outcome:
    with world.pings(*BETWEEN) as streams:
        world.engine.act("kill", "broker")
        try:
            world.sleep(PAUSE_SECONDS)
            fine = not [phrase for look in world.look().values() for phrase in look.wrong()]
        finally:
            world.engine.act("start", "broker")
        took = world.wait(world.wrong, WHOLE_SECONDS)
    return _unfelt(
        streams, f"all {'whole' if fine else 'NOT whole'} meanwhile, told anew after {took:.1f} s", fine
    )


def router_restarts(world: World) -> Outcome:
    with world.pings(("node-1", "node-2"), ("node-3", "node-1")) as streams:
        world.engine.act("restart", "tor")
        took = world.wait(world.wrong, WHOLE_SECONDS)
    return _unfelt(streams, f"whole after {took:.1f} s")


def update_rolls(world: World) -> Outcome:
    """As a DaemonSet does it: both programs of a node go and come, then the next node's."""
    took = []
    with world.pings(*BETWEEN, ("node-3", "node-2"), ("node-3", "outside")) as streams:
        for node in node_names():
            programs = (f"{node}-agent", f"{node}-speaker")
            world.engine.act("stop", *programs)
            world.engine.act("start", *programs)
            world.sleep(AFTER_SECONDS)
            took.append(world.wait(world.wrong, WHOLE_SECONDS))
    return _unfelt(streams, f"whole after {', '.join(f'{seconds:.1f}' for seconds in took)} s")


def machine_reboots(world: World) -> Outcome:
    with world.pings(("node-1", "node-3"), ("node-3", "node-1")) as streams:
        world.engine.act("kill", "node-2-agent", "node-2-speaker", "node-2")
        world.engine.act("start", "node-2")
        world.engine.act("start", "node-2-agent", "node-2-speaker")
        world.sleep(AFTER_SECONDS)
        took = world.wait(world.wrong, WHOLE_SECONDS)
    tried, silent = world.ping_all()
    return _unfelt(
        streams,
        f"whole after {took:.1f} s, then {tried - len(silent)} of {tried} pings answered",
        not silent,
    )


KIT = (
    Fault("kill an agent", "started again; no ping lost, no session reset", agent_dies),
    Fault("kill a speaker", "started again; peers keep its routes: no ping lost", speaker_dies),
    Fault("pause an agent", "it does not answer meanwhile; no ping lost", agent_hangs),
    Fault(
        "pause a speaker",
        f"its node is reached until its routes go, at the latest {SILENCE}, and again afterwards",
        speaker_hangs,
    ),
    Fault(
        "partition a node",
        f"its routes go at the latest {SILENCE}, its last will is told; no other ping is lost",
        partition,
    ),
    Fault("kill etcd", "every agent says so; no ping lost, nothing withdrawn", datastore_stops),
    Fault("kill the broker", "nobody cares, and every status is told anew", broker_stops),
    Fault("restart the router", "the way out comes back; between pods no ping lost", router_restarts),
    Fault("update node by node", "agent and speaker of each restart together; no ping lost", update_rolls),
    Fault("reboot a machine", "new pods there are reachable; nobody else loses a ping", machine_reboots),
)


def _unfelt(streams: Iterable[Stream], seen: str, good: bool = True) -> Outcome:
    """Good when no stream lost a ping."""
    all_streams = list(streams)
    sent = sum(stream.sent for stream in all_streams)
    felt = [str(stream) for stream in all_streams if stream.lost or not stream.sent]
    return Outcome(good and not felt, f"{', '.join(felt) or f'0 of {sent} pings lost'}, {seen}")


@contextmanager
def _paused(world: World, service: str) -> Iterator[None]:
    world.engine.act("pause", service)
    try:
        yield
    finally:
        world.engine.act("unpause", service)


def _routes_via(world: World, lost: str, observers: list[str]) -> Iterator[str]:
    """Routes that observers, or the ToR router, still have through a node."""
    node = planned(lost)
    for look in world.look(observers).values():
        for prefix, gateway in look.routes.items():
            if gateway in (node.ipv4, node.ipv6):
                yield f"{look.name} routes {prefix} via {lost}"
    for version in (4, 6):
        for prefix, hops in world.ecmp(version).items():
            if hops > 2:
                yield f"the ToR router routes {prefix} via {lost}, too"


def _not_gone(world: World, name: str) -> Iterator[str]:
    """What the broker says of a node whose last will it should have told."""
    if (state := world.broker().get(name, "nothing")) != "gone":
        yield f"the broker says '{state}' of {name}"


def _still_in_sync(world: World) -> Iterator[str]:
    for look in world.look().values():
        if look.status.get("datastore", {}).get("state") == "in-sync":
            yield f"{look.name} believes to be in sync"
