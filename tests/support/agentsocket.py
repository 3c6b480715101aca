"""A stand-in for an agent's status socket: answers what the test says, remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NOW = 1_700_000_000.0
STATUS: dict[str, Any] = {
    "version": 1,
    "node": "node-1",
    "time": NOW,
    "agent": {"pid": 7, "started": NOW - 100, "version": "0.1.0"},
    "datastore": {
        "state": "in-sync",
        "since": NOW - 90,
        "revision": 42,
        "endpoints": ["http://e:2379"],
        "reason": "",
    },
    "kubernetes": None,
    "speaker": {"state": "connected", "since": NOW - 80, "pid": 8, "exabgp": "5.0.15", "reason": ""},
    "peers": [
        {
            "address": "10.0.0.2",
            "port": 179,
            "type": "node-to-node mesh",
            "name": "Mesh_10_0_0_2",
            "asn": 64512,
            "state": "Established",
            "since": NOW - 60,
            "info": "",
            "remote_node": "node-2",
        },
        {
            "address": "fd00::2",
            "port": 179,
            "type": "global",
            "name": "Global_fd00__2",
            "asn": 64600,
            "state": "Active",
            "since": NOW - 200_000,
            "info": "Connection refused",
            "remote_node": None,
        },
    ],
    "routes": {"wanted": 2, "installed": 2, "failed": [], "conflicts": []},
    "rib": {"prefixes": 2, "paths": 2, "valid": 2, "invalid": 0, "unknown": 0},
    "origin_validation": "enforce",
    "refusals": [],
}
"""The whole answer to {"ask": "status"}, healthy but for one peer."""


class AgentSocket:
    """Serves `agent.sock` in a directory from a thread. `answers`: by the question's `ask`."""

    def __init__(
        self, directory: Path, answers: dict[str, Any] | None = None, raw: bytes | None = None
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "agent.sock"
        self.asked: list[dict[str, Any]] = []
        self._answers = answers if answers is not None else {"status": STATUS}
        self._raw = raw
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.path.unlink()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                question = json.loads(stream.readline())
                self.asked.append(question)
                if self._raw is not None:
                    connection.sendall(self._raw)
                    continue
                answer = self._answers.get(question["ask"], {"error": f"I do not know {question['ask']}"})
                connection.sendall(json.dumps(answer).encode() + b"\n")
