"""`tortie-speaker`: holds the BGP sessions of one node and forwards between peers and agent.

It survives the agent: sessions and adverts stay for `--agent-hold` seconds; the first sessions wait
`--first-agent` seconds for one that has something to say. When it is itself restarted (SIGTERM, SIGINT, a
crash) peers with graceful restart keep their routes, because no NOTIFICATION is sent; SIGUSR1 is the real
shutdown, with a Cease to every peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

from agent.collector import collect_rarely
from agent.speaker import adapter
from agent.speaker.agents import AgentServer
from agent.speaker.conf import Reader
from agent.speaker.driver import ADMIN_SHUTDOWN, DECONFIGURED, PeerDriver
from agent.speaker.feed import Feed
from agent.speaker.listen import Listeners
from agent.speaker.protocol import VERSION, Command, ConfigApplied, Hello, Reload
from agent.speaker.session import PeerEntry, PeerTable, refusal
from agent.speaker.settings import ConfError
from agent.systemd import Notifier, keep_told
from felix_like.model.address import Address
from felix_like.model.verdict import Yes

_logger = logging.getLogger("tortie.speaker")
MAX_CONF = 16 << 20
MAX_SOCKETS = 16384
_FAREWELL = 0.3
"""Seconds for peers to read their Cease: a socket closed with octets unread would take it back."""


class Speaker:
    """The process: table, drivers, listeners and the agent's socket."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._config: Path = arguments.config
        self._first_agent: float = arguments.first_agent
        self._loaded = False
        self._agent_hold: float = arguments.agent_hold
        self._boot = secrets.token_hex(8)
        self._reader = Reader(adapter.parse)
        self._drivers: dict[Address, PeerDriver] = {}
        self._paused = False
        self._farewell = 0.0
        self._hold: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self.done = asyncio.Event()
        self._table = PeerTable(time.time, arguments.prefix_limit)
        self._table.kick = self._kick
        self._table.pardon = self._pardon
        self._listeners = Listeners(arguments.listen_port, self._accepted, adapter.set_key)
        self._agents = AgentServer(arguments.socket, self)
        self._table.wake = self._agents.wake

    async def run(self) -> None:
        # First the socket: where another speaker is running, not one connection may be touched.
        await self._agents.start()
        if not self._config.exists():
            _logger.info("%s is not there yet: waiting for the agent", self._config)
        self._loop.call_later(self._first_agent, self._begin)
        self._absent()
        ticker = self._loop.create_task(self._tick(), name="tick")
        notifier = Notifier(os.environ)
        teller = self._loop.create_task(
            keep_told(notifier, ready=Yes, sentence=self._sentence), name="service manager"
        )
        try:
            await self.done.wait()
            await asyncio.sleep(self._farewell)
        finally:
            notifier.say(STOPPING="1")
            ticker.cancel()
            teller.cancel()
            self._agents.close()
            self._listeners.close()

    def _sentence(self) -> str:
        peers = self._table.peers.values()
        up = sum(peer.negotiation is not None for peer in peers)
        return f"{up} of {len(peers)} sessions established; {'no agent' if self._paused else 'at work'}"

    def stop(self, cease: bool) -> None:
        """End the process; without Cease, peers keep our routes over a restart."""
        for driver in self._drivers.values():
            gracefully = not cease and driver.entry.neighbor.restart_time > 0
            driver.stop(None if gracefully else ADMIN_SHUTDOWN, "tortie-speaker stops")
        self._farewell = _FAREWELL if cease else 0.0
        self.done.set()

    def _begin(self) -> None:
        """Build the first sessions: when an agent comes, or has not come for a while.

        Peers let go of what a restarted speaker has not announced again when its session ends anew (RFC
        4724 section 4.2): so a pod that dies twice in a row had better have no session in between.
        """
        if not self._loaded and self._config.exists():
            self.load(self._config)

    def load(self, path: Path) -> ConfigApplied:
        """Read the configuration and change what differs; on any error nothing changes."""
        self._loaded = True
        try:
            if path.stat().st_size > MAX_CONF:
                raise ConfError(f"larger than {MAX_CONF >> 20} MiB")
            neighbors = self._reader.read(path.read_text("utf-8"))
            why = refusal(neighbors)
            if why:
                raise ConfError(why)
        except (OSError, UnicodeDecodeError, ConfError) as error:
            reason = f"{path}: {error}; the sessions stay as they were"
            _logger.error("cannot use the configuration %s", reason)
            return ConfigApplied(str(path), unchanged=len(self._table.peers), error=reason)
        changes = self._table.configure(neighbors)
        for entry in changes.removed:
            self._drivers.pop(entry.address).stop(DECONFIGURED, "peer de-configured")
            if self._table.feed is not None:
                self._table.feed.gone(entry)
        self._listeners.update(neighbors)
        for entry in changes.changed:
            self._drivers[entry.address].reconfigure()
        for entry in changes.added:
            self._drivers[entry.address] = PeerDriver(
                entry, adapter.Session, adapter.open_socket, restarting=self._kept_by(entry)
            )
            if self._table.feed is not None:
                self._table.feed.state(entry)
        if self._paused:
            self._pause()
        report = changes.report(str(path))
        _logger.info(
            "configuration: %d added, %d removed, %d changed, %d unchanged",
            len(report.added),
            len(report.removed),
            len(report.changed),
            report.unchanged,
        )
        self._agents.wake()
        return report

    def _kept_by(self, entry: PeerEntry) -> bool:
        """Whether a peer may still keep what a process before this one told it: then our OPEN says that we
        restart (RFC 4724 section 4.1). Not only of the first configuration: passwords may come after it."""
        return self._loop.time() - self._begun < entry.neighbor.restart_time

    # ------------------------------------------------------------------ the agent (AgentHost)

    def agent_came(self) -> Feed:
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._paused:
            self._paused = False
            _logger.info("the agent is back: sessions are built again")
            for driver in self._drivers.values():
                driver.resume()
        self._begin()
        hello = Hello(VERSION, os.getpid(), self._boot, adapter.EXABGP_VERSION)
        feed = Feed(hello, self._table.peers.values())
        self._table.connected(feed)
        return feed

    def agent_left(self) -> None:
        self._table.disconnected()
        self._absent()

    def command(self, command: Command) -> ConfigApplied | None:
        if isinstance(command, Reload):
            return self.load(Path(command.path))
        self._table.carry_out(command)
        return None

    def _absent(self) -> None:
        if self._hold is None and not self._paused:
            self._hold = self._loop.call_later(self._agent_hold, self._held_long_enough)

    def _held_long_enough(self) -> None:
        self._hold = None
        if not self._paused:
            _logger.warning(
                "no agent for %.0f s: sessions are ceased; they come back with the agent", self._agent_hold
            )
            self._paused = True
            self._pause()

    def _pause(self) -> None:
        for driver in self._drivers.values():
            driver.stop(ADMIN_SHUTDOWN, "no agent")
            driver.entry.failing("no agent for too long", "Idle")

    # ------------------------------------------------------------------ peers

    def _kick(self, entry: PeerEntry) -> None:
        driver = self._drivers.get(entry.address)
        if driver is not None:
            driver.kick()

    def _pardon(self, entry: PeerEntry) -> None:
        driver = self._drivers.get(entry.address)
        if driver is not None:
            _logger.info("neighbor %s: its limit was raised, it may come back", entry.address)
            driver.pardon()

    def _accepted(self, local: Address, peer: Address, io: socket.socket) -> None:
        driver = self._drivers.get(peer)
        if driver is None or driver.entry.neighbor.local_address != local:
            _logger.debug("connection from %s to %s: no such neighbor", peer, local)
            io.close()
            return
        adapter.set_ttl(io, driver.entry.neighbor)
        driver.accepted(io)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for driver in list(self._drivers.values()):
                try:
                    driver.tick()
                except Exception:  # without its ticks every other session would run out of time, too
                    _logger.exception("neighbor %s: its tick failed", driver.entry.address)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    run_dir = Path(os.environ.get("TORTIE_RUN_DIR") or "/run/tortie")
    parser = argparse.ArgumentParser(
        prog="tortie-speaker",
        description="Holds this node's BGP sessions for tortie-agent (RFC 4271), driving ExaBGP.",
        epilog="signals: TERM, INT exit without a word (peers keep routes: graceful restart); "
        "USR1 exits with a Cease to every peer; HUP reads the configuration again",
    )
    parser.add_argument("--config", type=Path, default=run_dir / "exabgp.conf", help="default: %(default)s")
    parser.add_argument("--socket", type=Path, default=run_dir / "speaker.sock", help="default: %(default)s")
    parser.add_argument(
        "--prefix-limit",
        type=int,
        default=50_000,
        help="prefixes at most from one peer (default: %(default)s)",
    )
    parser.add_argument(
        "--first-agent",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="how long the first sessions wait for an agent (default: %(default)s)",
    )
    parser.add_argument(
        "--agent-hold",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long sessions outlive the agent (default: %(default)s)",
    )
    parser.add_argument(
        "--listen-port",
        type=int,
        default=179,
        help="for neighbors without `listen`; 0 for none (default: %(default)s)",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="default: %(default)s",
    )
    return parser.parse_args(argv)


async def _main(arguments: argparse.Namespace) -> None:
    speaker = Speaker(arguments)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, speaker.stop, False)
    loop.add_signal_handler(signal.SIGUSR1, speaker.stop, True)
    loop.add_signal_handler(signal.SIGHUP, speaker.load, arguments.config)
    await speaker.run()


def allow_sockets() -> None:
    """Take the descriptors the machine allows: the usual 1024 are fewer than a large mesh needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_SOCKETS if hard == resource.RLIM_INFINITY else min(hard, MAX_SOCKETS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    logging.basicConfig(
        level=arguments.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        allow_sockets()
        adapter.prepare()
        collect_rarely()
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_main(arguments))
    except (OSError, RuntimeError) as error:
        print(f"tortie-speaker: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
