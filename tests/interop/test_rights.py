"""Who may do what to a running node: other users of the host, strangers on the fabric, the node at etcd.

What deploy/README.md says of rights, files and sockets is what is seen here.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.netns import Namespace
from tests.support.system import Node, System, block4, block6, until, v4, v6

pytestmark = pytest.mark.interop

PASSWORD = "not-for-every-eye"
ENCODED = base64.b64encode(PASSWORD.encode()).decode()
"""As exabgp.conf has it."""
NOBODY = 65534
PATIENCE = 60.0


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with System() as made:
        made.folder.chmod(0o755)  # as /run is: what is below says who may
        made.etcd.resource(
            "BGPConfiguration",
            "default",
            {"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}},
        )
        for number in (1, 2):
            made.node(number, start=False)
        for node in made.nodes.values():
            (node.folder / "secrets").chmod(0o700)
            node.secret("bgp", "mesh", PASSWORD)
            node.start_speaker()
            node.start_agent()
        yield made


@pytest.fixture
def one(system: System) -> Node:
    node = system.nodes[1]
    until(lambda: node.established(v4(2), v6(2)), lambda: (node.status(), node.agent_log), PATIENCE)
    node.wait_route(block4(2), v4(2), PATIENCE)
    node.wait_route(block6(2), v6(2), PATIENCE)
    return node


def hidden(text: str) -> bool:
    return PASSWORD not in text and ENCODED not in text


def somebody(where: Namespace, code: str, uid: int = NOBODY) -> str:
    """What a program of another user prints, in a host's network."""
    done = subprocess.run(
        ["nsenter", f"--net={where.path}", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
         "--inh-caps=-all", "--bounding-set=-all", "/usr/bin/python3", "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASK = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    try:
        s.connect({path!r})
    except OSError as error:
        sys.exit(print(error.strerror))
    s.sendall({question!r})
    print(s.makefile().read())
"""


def test_every_user_may_ask_the_agent_and_hears_no_password(one: Node) -> None:
    for question in ({"ask": "status"}, {"ask": "routes"}, {"ask": "explain", "prefix": block4(2)}):
        line = json.dumps(question).encode() + b"\n"
        said = somebody(one.where, ASK.format(path=f"{one.folder}/agent.sock", question=line))
        assert "error" not in json.loads(said), said
        assert hidden(said)


def test_nobody_else_talks_to_the_speaker(one: Node) -> None:
    said = somebody(one.where, ASK.format(path=f"{one.folder}/speaker.sock", question=b"\n"))
    assert said == "Permission denied"


def test_what_holds_passwords_or_decides_is_its_owner_s(one: Node) -> None:
    until(lambda: (one.folder / "last-good-snapshot").exists(), "it is saved", PATIENCE)
    mine = {"agent.sock": 0o666, "speaker.sock": 0o600, "agent.lock": 0o600, "exabgp.conf": 0o600}
    mine["last-good-snapshot"] = 0o600
    modes = {name: stat.S_IMODE((one.folder / name).stat().st_mode) for name in mine}
    assert modes == mine
    assert ENCODED in (one.folder / "exabgp.conf").read_text(), "the one copy that the speaker needs"
    assert hidden((one.folder / "last-good-snapshot").read_bytes().decode("latin-1"))
    assert hidden(one.agent_log + one.speaker_log)
    read = "import sys\ntry: print(open({!r}).read())\nexcept OSError as error: print(error.strerror)"
    for name in ("exabgp.conf", "last-good-snapshot", "secrets/bgp/mesh"):
        assert somebody(one.where, read.format(f"{one.folder}/{name}")) == "Permission denied", name
    # Whoever may write there could put another exabgp.conf in its place.
    write = "import os\ntry: os.rename({!r}, {!r})\nexcept OSError as error: print(error.strerror)"
    replaced = write.format(f"{one.folder}/agent.lock", f"{one.folder}/exabgp.conf")
    assert somebody(one.where, replaced) == "Permission denied"


def test_no_process_shows_a_password_in_its_arguments(one: Node) -> None:
    every = subprocess.run(["ps", "-e", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "tortie-speaker" in every
    assert hidden(every)


def listening(where: Namespace) -> set[tuple[str, str]]:
    """(protocol, address:port)"""
    lines = where.run("ss", "-H", "-ltun").splitlines()
    return {(line.split()[0], line.split()[4]) for line in lines}


def test_it_listens_where_it_is_said_to_and_nowhere_else(one: Node) -> None:
    assert listening(one.where) == {
        ("tcp", f"{v4(1)}:179"),
        ("tcp", f"[{v6(1)}]:179"),
        ("tcp", "127.0.0.1:9179"),
    }


def test_metrics_are_for_the_host_itself(system: System, one: Node) -> None:
    url = "curl", "-s", "-m", "5"
    body = one.where.run(*url, "http://127.0.0.1:9179/metrics")
    assert "tortie_ready 1" in body
    assert hidden(body)
    done = subprocess.run(
        ["nsenter", f"--net={system.nodes[2].where.path}", *url, f"http://{v4(1)}:9179/metrics"], check=False
    )
    assert done.returncode == 7, "connection refused"


STRANGER = """
import socket
for family, address in ((socket.AF_INET, {v4!r}), (socket.AF_INET6, {v6!r})):
    with socket.socket(family) as s:
        s.settimeout(20)
        try:
            s.connect((address, 179))
            s.sendall(bytes.fromhex('ff' * 16 + '001d0104fbf0005ac00002090000'))
            print(len(s.recv(4096)))
        except ConnectionResetError:
            print(0)
"""


def test_a_stranger_at_the_bgp_port_is_sent_away_without_a_word(system: System, one: Node) -> None:
    host = system.host(9)
    before = one.peers()
    said = host.run(sys.executable, "-c", STRANGER.format(v4=v4(1), v6=v6(1)))
    assert said.split() == ["0", "0"]
    assert {a: p["since"] for a, p in one.peers().items()} == {a: p["since"] for a, p in before.items()}
    assert "192.0.2.9" not in one.peers()


def test_a_peer_s_address_without_its_password_gets_no_connection(system: System, one: Node) -> None:
    """TCP MD5 (RFC 2385): the kernel drops the segments."""
    system.fabric.unplug(2)
    liar = system.host(8)
    try:
        liar.ip("addr", "add", f"{v4(2)}/24", "dev", "eth0")
        one.where.ip("neigh", "flush", "all")
        code = (
            f"import socket; s = socket.socket(); s.bind(({v4(2)!r}, 0)); s.settimeout(3)\n"
            f"try: s.connect(({v4(1)!r}, 179)); print('connected')\n"
            "except TimeoutError: print('silence')"
        )
        assert liar.run(sys.executable, "-c", code).strip() == "silence"
    finally:
        liar.ip("addr", "del", f"{v4(2)}/24", "dev", "eth0")
        system.fabric.plug(2)
        one.where.ip("neigh", "flush", "all")


def test_reading_all_and_writing_its_own_node_is_all_an_agent_needs_of_etcd(
    system: System, one: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def etcdctl(*words: str) -> None:
        done = system.etcd._ctl(*words)
        assert done.returncode == 0, done.stderr

    etcdctl("user", "add", "root:root")
    etcdctl("user", "grant-role", "root", "root")
    for node in system.nodes.values():
        own = f"/calico/resources/v3/projectcalico.org/nodes/{node.name}"
        etcdctl("role", "add", node.name)
        etcdctl("role", "grant-permission", node.name, "--prefix=true", "read", "/calico/")
        etcdctl("role", "grant-permission", node.name, "readwrite", own)
        etcdctl("user", "add", f"{node.name}:secret")
        etcdctl("user", "grant-role", node.name, node.name)
    etcdctl("auth", "enable")
    monkeypatch.setitem(os.environ, "ETCDCTL_USER", "root:root")
    for node in system.nodes.values():
        node.kill_agent()
        node.settings |= {"ETCD_USERNAME": node.name, "ETCD_PASSWORD": "secret"}
        (node.folder / "last-good-snapshot").unlink(missing_ok=True)
    system.etcd.drop("Node", "node-1")  # to be made anew
    one.start_agent()
    until(
        lambda: one.status().get("datastore", {}).get("state") == "in-sync", lambda: one.agent_log, PATIENCE
    )
    until(lambda: "node-1" in system.etcd.get("/calico/resources/v3/projectcalico.org/nodes/node-1"))
    # A block claimed from now on is heard of, announced and routed.
    system.nodes[2].start_agent()
    system.etcd.claim("node-2", block4(2, 1))
    one.wait_route(block4(2, 1), v4(2), PATIENCE)
    assert one.refusals() == []
