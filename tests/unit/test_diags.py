"""`tortiectl node diags`: what is in the archive, what never is, and that nothing holds it up."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from agent.check.proc import Proc
from agent.cli.main import tortiectl
from agent.diags import archive, redact, sources
from agent.diags.gather import Got, Item, Missing, command, file, gather, text
from agent.diags.items import Here, items
from agent.diags.make import Diags, collect
from agent.diags.redact import MARK, Redactor
from tests.support.agentsocket import STATUS, AgentSocket

ROUTES = {
    "routes": [
        {
            "prefix": "10.65.0.0/26",
            "kind": "learned",
            "kernel": "installed",
            "paths": [{"validity": "valid"}],
        },
        {
            "prefix": "10.65.9.0/26",
            "kind": "learned",
            "kernel": "absent",
            "paths": [{"rejection": "not theirs"}],
        },
    ]
}
ANSWERS = {"status": STATUS, "routes": ROUTES, "explain": {"lines": ["10.65.9.0/26: refused, because"]}}


class Host:
    """A host in a directory: run directory, settings, files; programs that say what the test wants."""

    def __init__(self, root: Path) -> None:
        self.run, self.programs, self.secrets = root / "run", root / "bin", root / "secrets"
        for folder in (self.run, self.programs, self.secrets):
            folder.mkdir()
        self.conf, self.calicoctl = root / "tortie.conf", root / "calicoctl.cfg"
        self.conf.touch()
        self.environ = {
            "NODENAME": "node-1",
            "TORTIE_RUN_DIR": str(self.run),
            "TORTIE_CONFIG_FILE": str(self.conf),
            "TORTIE_SECRETS_DIR": str(self.secrets),
            "TORTIE_HEALTH_ADDRESS": "127.0.0.1:1",
            "ETCD_ENDPOINTS": "http://127.0.0.1:1",
        }

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!{sys.executable}\n{script}\n")
        path.chmod(0o755)

    def diags(self, *, calicoctl: bool = False) -> Diags:
        return collect(self.environ, str(self.calicoctl) if calicoctl else None)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    return made


# -- no secret -----------------------------------------------------------------------------------------

KNOWN = {
    "environment": "Env-etcd-9qX1",
    "settings file": "File-etcd-9qX2",
    "calicoctl.cfg": "Cfg-etcd-9qX4",
    "broker's password file": "Mqtt-file-9qX6",
    "user in a URL": "Mqtt-url-9qX7",
    "password file": 'Bgp-"file"-9qX8',
    "exabgp.conf": "Bgp-conf-9qX9",
}
"""Secrets that the host's own settings hold: to be gone wherever they show up."""
ELSEWHERE = {
    "key in the file": "MIIkeykeykey9qXa",
    "key of a socket": "Sock-9qXb",
    "key iproute2 leaks": "Leak-9qXi",
    "header in a log": "eyJhbGciOi9qXc",
    "field of an answer": "Answer-9qXd",
    "sentence of an answer": "Sentence-9qXe",
    "setting of somebody else": "Other-9qXf",
    "variable of somebody else": "Variable-9qXg",
    "key in a log": "MIIkeyinlog9qXh",
    "short": "q9Z",
}
"""Secrets that only their place tells."""


def encoded(secret: str) -> str:
    return base64.b64encode(secret.encode()).decode()


def plant(host: Host) -> None:
    host.environ |= {
        "ETCD_USERNAME": "root",
        "ETCD_PASSWORD": KNOWN["environment"],
        "TORTIE_MQTT_URL": f"mqtt://user:{KNOWN['user in a URL']}@broker:1883",
        "TORTIE_MQTT_PASSWORD_FILE": str(host.secrets / "mqtt"),
        "AWS_SECRET_ACCESS_KEY": ELSEWHERE["variable of somebody else"],
    }
    (host.secrets / "mqtt").write_text(KNOWN["broker's password file"] + "\n")
    (host.secrets / "tor").mkdir()
    (host.secrets / "tor" / "key").write_text(KNOWN["password file"])
    host.conf.write_text(
        f"CALICO_ETCD_PASSWORD={KNOWN['settings file']}\nDB_URL={ELSEWHERE['setting of somebody else']}\n"
    )
    pem = f"-----BEGIN PRIVATE KEY-----\n    {ELSEWHERE['key in the file']}\n"
    host.calicoctl.write_text(
        "kind: CalicoAPIConfig\nspec:\n  etcdUsername: root\n"
        f"  etcdPassword: {KNOWN['calicoctl.cfg']}\n"
        f"  etcdKey: |\n    {pem}    -----END PRIVATE KEY-----\n"
    )
    (host.run / "exabgp.conf").write_text(
        "".join(
            f'neighbor 192.0.2.1 {{\n    md5-base64 true;\n    md5-password "{encoded(secret)}";\n}}\n'
            for secret in (KNOWN["exabgp.conf"], ELSEWHERE["short"])
        )
    )


def repeat(host: Host) -> None:
    """Each known one again, in the logs and in what programs say."""
    known = KNOWN.values()
    lines = [
        *(
            f"ERROR cannot use {secret}, {encoded(secret)} or {json.dumps(secret)}"
            for secret in KNOWN.values()
        ),
        *(f"GET /?q={quote(secret, safe='')}" for secret in known),
        f"Authorization: Bearer {ELSEWHERE['header in a log']}",
        f"-----BEGIN EC PRIVATE KEY-----\n{ELSEWHERE['key in a log']}\n-----END EC PRIVATE KEY-----",
    ]
    said = "\n".join([*lines, ""])
    (host.run / "agent.log").write_text(said)
    key = ELSEWHERE["key of a socket"]
    for name in ("journalctl", "systemctl", "nft", "ip"):
        host.program(name, f"print({said!r})")
    # As iproute2 6.1 does with -i: the key comes first, by itself.
    leak = (
        f"import sys\nif 'i' in ''.join(sys.argv[1:]): print({ELSEWHERE['key iproute2 leaks']!r}, end='')\n"
    )
    host.program(
        "ss", f"{leak}print('ESTAB 192.0.2.1:179 md5keys:192.0.2.2/32={key},192.0.2.3/32={key} rto:1')"
    )


def test_no_secret_is_in_the_archive_wherever_it_was_planted(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(host)
    repeat(host)
    monkeypatch.setattr("agent.diags.items.SYSTEMD", host.run)
    refusal = {"subject": "peer", "reason": f"its password: {ELSEWHERE['sentence of an answer']} is wrong"}
    status = STATUS | {"refusals": [refusal], "password": ELSEWHERE["field of an answer"]}
    with AgentSocket(host.run, ANSWERS | {"status": status}):
        made = host.diags(calicoctl=True)

    packed = io.BytesIO()
    archive.pack(packed, made.folder, made.texts, made.when)
    with tarfile.open(fileobj=io.BytesIO(packed.getvalue())) as opened:
        files = {name: opened.extractfile(name) for name in opened.getnames()}
        texts = {name: file.read() for name, file in files.items() if file is not None}
    assert len(texts) == len(made.texts)
    for what, secret in (KNOWN | ELSEWHERE).items():
        for spelling in (secret, encoded(secret), json.dumps(secret)[1:-1], quote(secret, safe="")):
            found = [name for name, octets in texts.items() if spelling.encode() in octets + name.encode()]
            assert not found, f"{what} as {spelling}"

    # It all was there to be told, and what is left is worth reading.
    assert b"cannot use " + MARK.encode() in made.texts["logs/agent.log"]
    assert b"cannot use " + MARK.encode() in made.texts["logs/tortie-agent.journal.txt"]
    assert b"cannot use " + MARK.encode() in made.texts["kernel/nft.txt"]
    assert f"md5keys:{MARK} rto:1".encode() in made.texts["kernel/sockets.txt"]
    assert made.texts["speaker/exabgp.conf"].count(f"md5-password {MARK};".encode()) == 2
    assert b"its password: " + MARK.encode() + b" is wrong" in made.texts["agent/status.json"]
    settings = made.texts["settings.txt"].decode().splitlines()
    assert f"ETCD_PASSWORD={MARK}  (environment)" in settings
    assert f"TORTIE_MQTT_URL=mqtt://{MARK}@broker:1883  (environment)" in settings
    assert f"DB_URL={MARK}  ({host.conf})" in settings
    assert "ETCD_USERNAME=root  (environment)" in settings


RESOURCE = {
    "kind": "BGPPeer",
    "metadata": {
        "name": "tor",
        "annotations": {
            "tortie/prefix-limit": "10",
            "kubectl.kubernetes.io/last-applied-configuration": '{"password": "hunter2"}',
        },
    },
    "spec": {
        "password": {"secretKeyRef": {"name": "bgp", "key": "tor", "value": "hunter2"}},
        "peerIP": "192.0.2.1",
        "apiToken": "hunter2",
        "list": [{"privateKey": "hunter2"}],
        "keepOriginalNextHop": True,
    },
}


def test_a_resource_keeps_what_it_means_and_loses_what_it_hides() -> None:
    clean = redact.resource(RESOURCE)
    assert "hunter2" not in json.dumps(clean)
    assert clean["spec"]["password"] == {"secretKeyRef": {"name": "bgp", "key": "tor", "value": MARK}}
    assert clean["spec"]["peerIP"] == "192.0.2.1"
    assert clean["metadata"]["annotations"]["tortie/prefix-limit"] == "10"
    assert clean["spec"]["keepOriginalNextHop"] is True


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('    md5-password "a\\"b c";', f"    md5-password {MARK};"),
        ("    md5-password abc;", f"    md5-password {MARK};"),
        ("ESTAB md5keys:10.0.0.1/32=a,b rto:1", f"ESTAB md5keys:{MARK} rto:1"),
        ("https://u:p%40@h/x", f"https://{MARK}@h/x"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {MARK}"),
        ("etcd_password: 'x y' rest", f"etcd_password: {MARK} rest"),
        ("TORTIE_SECRETS_DIR=/etc/tortie/secrets", "TORTIE_SECRETS_DIR=/etc/tortie/secrets"),
        ("TORTIE_MQTT_PASSWORD_FILE=/etc/p", "TORTIE_MQTT_PASSWORD_FILE=/etc/p"),
        ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\nnext", f"{MARK}\nnext"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\ncut he", MARK),
        ("the peer's password is missing", "the peer's password is missing"),
    ],
)
def test_what_looks_like_a_secret_in_a_text(before: str, after: str) -> None:
    assert Redactor().text(before) == after


def test_a_known_secret_goes_in_every_spelling_and_a_short_one_does_not_ruin_the_text() -> None:
    redactor = Redactor(["sw0rd/fish", "12", ""])
    spelled = ["sw0rd/fish", base64.b64encode(b"sw0rd/fish").decode(), "sw0rd%2Ffish", b"sw0rd/fish".hex()]
    assert redactor.text(" ".join(spelled)) == " ".join([MARK] * 4)
    assert redactor.text("port 12 of 12") == "port 12 of 12"


# -- nothing holds it up -------------------------------------------------------------------------------


def test_an_agent_that_answers(host: Host) -> None:
    (host.run / "agent.log").write_text("started\n")
    with AgentSocket(host.run, ANSWERS):
        made = host.diags()
    assert json.loads(made.texts["agent/status.json"])["node"] == "node-1"
    assert len(made.texts["agent/routes.jsonl"].splitlines()) == 2
    explained = made.texts["agent/explain.txt"].decode()
    assert explained.startswith("Refused or not installed: 1; the first 1:")
    assert "10.65.9.0/26: refused, because" in explained
    assert made.texts["logs/agent.log"] == b"started\n"
    manifest = made.texts["MANIFEST"].decode()
    assert "node node-1" in manifest
    assert "agent/status.json" in manifest
    assert "127.0.0.1:1" in made.missing["datastore.txt"]


def test_no_agent_no_programs_no_etcd_and_settings_that_are_wrong(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(host.programs))
    monkeypatch.setattr("agent.diags.gather.SBIN", str(host.programs))
    host.environ["TORTIE_HOLD_TIME"] = "5"
    made = host.diags()
    for name in ("kernel/links.txt", "kernel/nft.txt", "kernel/sockets.txt"):
        assert "is not installed here" in made.missing[name]
    assert "there is" in made.missing["agent/status.json"] or "could not" in made.missing["agent/status.json"]
    assert b"FAIL  settings: TORTIE_HOLD_TIME" in made.texts["checksystem.txt"]
    assert b'"table": "link"' in made.texts["kernel/netlink.txt"]
    manifest = made.texts["MANIFEST"].decode()
    assert all(name in manifest for name in made.missing)


def test_a_program_that_hangs_costs_its_own_time_only(host: Host) -> None:
    host.program("hangs", "import time, sys\nprint('so far', flush=True)\ntime.sleep(600)")
    got = command("hangs", seconds=1.0)
    assert got.octets == b"so far\n"
    assert "did not end in time and was killed" in got.note
    host.program("silent", "import time\ntime.sleep(600)")
    with pytest.raises(Missing, match="did not end in time"):
        command("silent", seconds=0.5)


def test_a_program_without_end_is_cut_at_a_line(host: Host) -> None:
    host.program("endless", "while True: print('x' * 100)")
    got = command("endless", limit=10_000)
    assert len(got.octets) <= 10_000
    assert got.octets.endswith(b"x\n")
    assert "cut after" in got.note


def test_an_item_that_hangs_or_breaks_is_named_and_the_others_are_there() -> None:
    def hang() -> Got:
        time.sleep(3600)
        raise AssertionError

    def broken() -> Got:
        raise RuntimeError("so\nbroken")

    wanted = [
        *(Item(f"hang{n}", "", hang, 0.2) for n in range(6)),
        Item("broken", "", broken),
        Item("good", "", lambda: text("here\n")),
    ]
    gathered = gather(wanted)
    assert list(gathered.got) == ["good"]
    assert gathered.missing["broken"] == "RuntimeError: so broken"
    assert gathered.missing["hang5"] == "it did not end within 0.2 s"


def test_a_long_file_gives_its_end_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n}\n" for n in range(10_000)))
    got = file(path, 1000, end=True)
    assert got.octets.startswith(b"line ")
    assert got.octets.endswith(b"line 9999\n")
    assert "the last" in got.note
    with pytest.raises(Missing, match="No such file"):
        file(tmp_path / "none")


def test_a_pipe_in_a_files_place_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert file(tmp_path / "pipe").octets == b""


def test_the_whole_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 100)
    gathered = gather(
        [Item("a", "", lambda: text("x" * 80 + "\n")), Item("b", "", lambda: text("y" * 80 + "\n"))]
    )
    clean = archive.clean(gathered, Redactor())
    assert list(clean.got) == ["a"]
    assert "left out" in clean.missing["b"]


# -- the command ---------------------------------------------------------------------------------------


def test_the_command_writes_one_private_file_and_never_over_another(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "d.tar.gz"
    result = CliRunner().invoke(tortiectl, ["node", "diags", "-o", str(out)], env=host.environ)
    assert result.exit_code == 0, result.output
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as packed:
        names = packed.getnames()
    assert len({name.split("/")[0] for name in names}) == 1
    assert names[0].startswith("tortie-diags-node-1-")
    assert "without agent/status.json" in result.output
    again = CliRunner().invoke(tortiectl, ["node", "diags", "-o", str(out)], env=host.environ)
    assert again.exit_code == 1
    assert "exists" in again.output
    nowhere = CliRunner().invoke(
        tortiectl, ["node", "diags", "-o", str(tmp_path / "no" / "d")], env=host.environ
    )
    assert nowhere.exit_code == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_the_archive_goes_through_a_pipe(host: Host) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli.main", "node", "diags", "-o", "-"],
        env={**os.environ, **host.environ}, capture_output=True, check=True, timeout=300,
    )  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as packed:
        assert any(name.endswith("/MANIFEST") for name in packed.getnames())


def test_settings_name_their_source(host: Host) -> None:
    host.conf.write_text("TORTIE_CLUSTER=from-file\nTORTIE_HOLD_TIME=30\nSTRANGE=9\n")
    host.environ["TORTIE_HOLD_TIME"] = "60"
    lines = list(sources.listing(sources.read(host.environ, None, Proc(), None)))
    assert f"TORTIE_CLUSTER=from-file  ({host.conf})" in lines
    assert "TORTIE_HOLD_TIME=60  (environment)" in lines
    assert f"TORTIE_HOLD_TIME=30  ({host.conf})" in lines
    assert "TORTIE_ROUTE_PRIORITY=1024  (default)" in lines
    assert f"STRANGE={MARK}  ({host.conf})" in lines


def test_every_item_has_a_name_of_its_own_and_a_word_for_the_manifest(host: Host) -> None:
    here = Here(
        host.environ,
        None,
        host.run,
        host.run,
        "node-1",
        sources.read(host.environ, None, Proc(), None),
        Proc(),
    )
    wanted = items(here)
    assert len({item.name for item in wanted}) == len(wanted)
    assert all(item.what for item in wanted)
