"""`make bench`: every figure in one table with its ratio, its target and whether it was met; and as JSON.

Ratios come from one run on one machine; absolute times drift with the machine and its other guests.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = tuple[str, str, str, str, str]
"""What, Tortie, yardstick, ratio, target and verdict."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("only", nargs="*", help="parts to run (default: all)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the benchmark itself")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": {"kernel": platform.release(), "python": platform.python_version(), "cores": _cores()},
        "quick": arguments.quick,
    }
    for name in arguments.only or PARTS:
        print(f"{time.strftime('%H:%M:%S')} {name} ...", file=sys.stderr, flush=True)
        figures |= PARTS[name](arguments.quick)
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print_table(list(rows(figures)))
    return 0


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _claims(quick: bool) -> dict[str, Any]:
    from tests.bench import claims

    return {"claims": claims.run(20 if quick else 200)}


def _injection(quick: bool) -> dict[str, Any]:
    from tests.bench import injection

    return {"injection": injection.run((1_000,) if quick else injection.SIZES)}


def _kernel(quick: bool) -> dict[str, Any]:
    from tests.bench import kernel

    return {"kernel": kernel.measure((10_000,) if quick else (100_000,))}


def _startup(quick: bool) -> dict[str, Any]:
    from tests.bench import startup

    return {"convergence": startup.run((3,) if quick else startup.SIZES)}


def _footprint(quick: bool) -> dict[str, Any]:
    from tests.bench import startup

    return {"footprint": startup.footprint((2,) if quick else startup.PEERS)}


def _services(quick: bool) -> dict[str, Any]:
    from tests.bench import services

    return {"services": services.measure(500 if quick else 10_000)}


JUDGED_KERNEL_CASE = ("sink IPv4 100000", "add")
"""The agent's real path: `KernelSink.want` to the kernel's last acknowledgement."""

PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "claims": _claims,
    "injection": _injection,
    "kernel": _kernel,
    "footprint": _footprint,
    "startup": _startup,
    "services": _services,
}


def rows(figures: dict[str, Any]) -> Iterator[Row]:
    """The table's lines, in the order of the numbered benchmarks."""
    if claims := figures.get("claims"):
        ours, theirs = claims["tortie"], claims["bird"]
        ratio = ours["p50_ms"] / theirs["p50_ms"]
        what = f"(1) affinity write -> kernel of all others, {claims['claims']} claims"
        yield (
            f"{what}, p50",
            _ms(ours["p50_ms"]),
            _ms(theirs["p50_ms"]),
            _times(ratio),
            _target(ratio <= 0.7, "<= 0.7 x"),
        )
        ratio = ours["p99_ms"] / theirs["p99_ms"]
        yield (
            f"{what}, p99",
            _ms(ours["p99_ms"]),
            _ms(theirs["p99_ms"]),
            _times(ratio),
            _target(ours["p99_ms"] < 100, "< 100 ms"),
        )
    for size, pair in figures.get("injection", {}).items():
        yield _compared(f"(2) {int(size):,} routes from BIRD -> last in the kernel", pair, 5)
    for case, rates in figures.get("kernel", {}).items():
        for what, rate in rates.items():
            if what == "lag":
                continue
            target = _target(rate > 80_000, "> 80,000/s") if (case, what) == JUDGED_KERNEL_CASE else ""
            yield (f"(3) kernel alone, {case} routes, {what}", f"{rate:,.0f}/s", "", "", target)
    for peers, spent in figures.get("footprint", {}).items():
        bound = int(peers) >= 50
        yield (
            f"(4) agent + speaker, RSS, {peers} peers",
            f"{spent['rss_mib']:.0f} MiB",
            "",
            "",
            _target(spent["rss_mib"] < 130, "< 130 MiB") if bound else "",
        )
        yield (f"(4) agent + speaker, PSS, {peers} peers", f"{spent['pss_mib']:.0f} MiB", "", "", "")
        yield (
            f"(4) agent + speaker, idle CPU, {peers} peers",
            f"{spent['cpu_percent']:.2f} %",
            "",
            "",
            _target(spent["cpu_percent"] < 2, "< 2 % of a core") if bound else "",
        )
    for size, pair in figures.get("convergence", {}).items():
        yield _compared(f"(5) mesh on -> every kernel complete, {size} nodes", pair, 3, judged=size == "20")
    if services := figures.get("services"):
        what = f"(6) {services['services']:,} services, {services['slices']:,} endpoint slices"
        yield (f"{what}, read and loaded", _ms(services["read_ms"] + services["load_ms"]), "", "", "")
        yield (f"{what}, a change that is nothing to us", f"{services['irrelevant_us']:.0f} us", "", "", "")
        yield (f"{what}, a change of our adverts", f"{services['relevant_us']:.0f} us", "", "", "")


def _compared(what: str, pair: dict[str, float], most: float, *, judged: bool = True) -> Row:
    ratio = pair["tortie_s"] / pair["bird_s"]
    target = _target(ratio <= most, f"<= {most:g} x") if judged else ""
    return (what, f"{pair['tortie_s']:.2f} s", f"{pair['bird_s']:.2f} s", _times(ratio), target)


def _ms(value: float) -> str:
    return f"{value:.1f} ms"


def _times(ratio: float) -> str:
    return f"{ratio:.2f} x"


def _target(met: bool, target: str) -> str:
    return f"{target}: {'met' if met else 'MISSED'}"


def print_table(lines: list[Row]) -> None:
    head: Row = ("figure", "Tortie", "BIRD 2", "ratio", "target")
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(5)]
    for line in [head, *lines]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
