"""`python -m agent.lab.compose`: build, start, prove and break the lab of docker-compose.yml."""

from __future__ import annotations

import argparse
import sys

from agent.lab.compose import faults
from agent.lab.compose.engine import Engine
from agent.lab.compose.plan import node_names
from agent.lab.compose.world import World
from agent.lab.plan import LabError
from agent.lab.progress import step

UP_SECONDS = 120.0


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 when the lab is not whole, or a fault had another outcome than it should."""
    arguments = _arguments(argv)
    try:
        engine = Engine.here()
        if arguments.word == "down":
            engine.down()
            print("the lab is gone; its images stay")
            return 0
        if arguments.build:
            with step("images tortie:dev and tortie-lab:dev"):
                engine.build()
        if arguments.word == "build":
            return 0
        if arguments.word == "up":
            with step("containers: etcd, broker, ToR router, 3 machines, each with agent and speaker"):
                engine.up(observe=arguments.observe)
        world = World(engine)
        prove(world, arguments.patience)
        if arguments.observe:
            observe(world, arguments.patience)
        return play(world, arguments.only) if arguments.faults else 0
    except LabError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def prove(world: World, seconds: float) -> None:
    """Wait until all is whole, and ping. Raises LabError."""
    with step("sessions, kernel routes, ECMP at the ToR router, statuses at the broker") as current:
        took = world.wait(world.wrong, seconds)
        hops = world.ecmp(4) | world.ecmp(6)
        current.result = (
            f"whole after {took:.1f} s, {len(hops)} blocks by {min(hops.values())} next hops each"
        )
    with step("ping from every pod to every pod and to the outside") as current:
        tried, silent = world.ping_all()
        if silent:
            raise LabError("\n    ".join(["pings were lost:", *silent]))
        current.result = f"{tried} of {tried} answered"


def observe(world: World, seconds: float) -> None:
    """Wait until Prometheus hears everybody, and say where to look. Raises LabError."""
    with step("Prometheus and Grafana") as current:
        world.wait(world.unheard, seconds)
        current.result = f"every target is scraped, {len(node_names())} agents among them"
    print(
        f"  Grafana     http://{world.engine.published('grafana', 3000)}\n"
        f"  Prometheus  http://{world.engine.published('prometheus', 9090)}/alerts",
        flush=True,
    )


def play(world: World, only: str | None) -> int:
    """The fault kit; the number of surprises, at most 1."""
    surprises = 0
    for fault in faults.KIT:
        if only and only not in fault.name:
            continue
        print(f"\n{fault.name}\n  expected  {fault.expected}", flush=True)
        try:
            outcome = fault.play(world)
        except LabError as error:
            outcome = faults.Outcome(False, str(error))
        surprises += not outcome.good
        print(
            f"  seen      {outcome.seen}\n  {'as expected' if outcome.good else 'NOT AS EXPECTED'}",
            flush=True,
        )
    print(f"\n{'Every fault had its expected outcome.' if not surprises else f'{surprises} surprise(s).'}")
    return min(surprises, 1)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent.lab.compose", description=__doc__)
    parser.set_defaults(build=False, faults=False, observe=False)
    words = parser.add_subparsers(dest="word", required=True)
    build = words.add_parser("build", help="build the images tortie:dev and tortie-lab:dev")
    build.set_defaults(build=True)
    up = words.add_parser("up", help="build the images, start the lab, prove it")
    up.add_argument("--no-build", dest="build", action="store_false", help="the images are there")
    up.add_argument("--faults", action="store_true", help="then run the fault kit")
    up.add_argument("--observe", action="store_true", help="with Prometheus and Grafana")
    up.set_defaults(build=True)
    check = words.add_parser("check", help="prove a lab that runs")
    broken = words.add_parser("faults", help="run the fault kit against a lab that runs")
    broken.set_defaults(faults=True)
    words.add_parser("down", help="remove containers, network and volumes")
    for word in (up, broken):
        word.add_argument("--only", metavar="TEXT", help="faults whose name has this text")
    for word in (up, check, broken):
        word.add_argument(
            "--patience", type=float, default=UP_SECONDS, metavar="SECONDS", help="until it must be whole"
        )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
