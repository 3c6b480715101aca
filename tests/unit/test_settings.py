"""Settings: every wrong value is one sentence with the setting, the value and what is allowed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from agent import settings
from agent.autodetect import Method
from agent.settings import Settings, load
from agent.settings_file import parse
from agent.settings_values import Fixed, SettingsError
from felix_like.datastore.kube.access import KubeAccess
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import LocalNode


@pytest.fixture
def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment that reads no file of the machine the test runs on."""
    empty = tmp_path / "tortie.conf"
    empty.write_text("")
    return {"TORTIE_CONFIG_FILE": str(empty), "CALICO_NODENAME_FILE": str(tmp_path / "nodename")}


def read(environment: dict[str, str], hostname: str = "Host-1") -> Settings:
    return load(environment, hostname=hostname)


def test_the_defaults_are_those_of_the_table(nowhere: dict[str, str]) -> None:
    default = {s.name: s.default for s in settings.table()}
    got = read(nowhere)
    assert got.nodename == "host-1"
    assert (got.ip, got.ip6) == ("keep", "keep")
    assert str(got.ip_autodetection) == default["IP_AUTODETECTION_METHOD"]
    assert (got.asn, got.router_id, got.check_node_ip) == (None, None, True)
    assert got.etcd.endpoints == (default["ETCD_ENDPOINTS"],)
    assert got.log_level == logging.INFO
    assert str(got.run_dir) == default["TORTIE_RUN_DIR"]
    assert str(got.state_dir) == "/var/lib/tortie"
    assert str(got.secrets_dir) == default["TORTIE_SECRETS_DIR"]
    assert got.origin_validation == default["TORTIE_ORIGIN_VALIDATION"]
    assert str(got.hold_time) == default["TORTIE_HOLD_TIME"]
    assert str(got.prefix_limit) == default["TORTIE_PREFIX_LIMIT"]
    assert str(got.route_priority) == default["TORTIE_ROUTE_PRIORITY"]
    assert "{}:{}".format(*got.health_address or ()) == default["TORTIE_HEALTH_ADDRESS"]
    assert got.not_used == ()
    assert got.local_node == LocalNode(name="host-1")


def test_everything_set(nowhere: dict[str, str]) -> None:
    got = read(
        nowhere
        | {
            "NODENAME": "Node.1",
            "IP": "10.0.0.1/24",
            "IP6": "autodetect",
            "IP_AUTODETECTION_METHOD": "interface=eth.*,ens3",
            "IP6_AUTODETECTION_METHOD": "cidr=fd00::/16",
            "DISABLE_NODE_IP_CHECK": "true",
            "AS": "1.1",
            "CALICO_ROUTER_ID": "hash",
            "CALICO_K8S_NODE_REF": "worker-1",
            "CALICO_ADVERTISE_CLUSTER_IPS": "10.96.0.0/12, fd00:96::/112,10.96.0.0/12",
            "USE_POD_CIDR": "true",
            "CALICO_ETCD_ENDPOINTS": "http://10.0.0.9:2379",
            "FELIX_LOGSEVERITYSCREEN": "WARNING",
            "CALICO_STARTUP_LOGLEVEL": "DEBUG",
            "TORTIE_RUN_DIR": "/tmp/x",
            "TORTIE_ORIGIN_VALIDATION": "Observe",
            "TORTIE_PREFIX_LIMIT": "10",
            "TORTIE_HOLD_TIME": "0",
            "TORTIE_ROUTE_PRIORITY": "50",
        }
    )
    assert got.nodename == "Node.1"
    assert got.ip == Fixed(Address.parse("10.0.0.1"), 24)
    assert got.ip6 == "autodetect"
    assert got.ip_autodetection == Method("interface", ("eth.*", "ens3"))
    assert got.ip6_autodetection == Method("cidr", ("fd00::/16",))
    assert got.check_node_ip is False
    assert got.asn == 65537
    assert got.etcd.endpoints == ("http://10.0.0.9:2379",)
    assert got.log_level == logging.WARNING
    assert got.run_dir == Path("/tmp/x")
    assert got.state_dir == Path("/tmp/x")  # agents with run directories of their own share no snapshot
    assert got.origin_validation == "observe"
    assert got.local_node == LocalNode(
        name="Node.1",
        router_id="hash",
        prefix_limit=10,
        hold_time=0,
        route_priority=50,
        kubernetes_name="worker-1",
        cluster_ips=(Prefix.parse("10.96.0.0/12"), Prefix.parse("fd00:96::/112")),
        use_pod_cidr=True,
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::]:9179", ("::", 9179)),
        ("[FD00::1]:65535", ("fd00::1", 65535)),
        ("none", None),
        ("None", None),
    ],
)
def test_where_health_is_served(nowhere: dict[str, str], text: str, address: tuple[str, int] | None) -> None:
    assert read(nowhere | {"TORTIE_HEALTH_ADDRESS": text}).health_address == address


WRONG = [
    ("NODENAME", "node/1"),
    ("NODENAME", "a\nb"),
    ("NODENAME", "x" * 254),
    ("HOSTNAME", "_"),
    ("FELIX_FELIXHOSTNAME", "a b"),
    ("IP", "10.0.0"),
    ("IP", "10.0.0.1/33"),
    ("IP", "10.0.0.1/"),
    ("IP", "fd00::1"),
    ("IP", "127.0.0.1"),
    ("IP", "0.0.0.0"),
    ("IP", "169.254.0.1"),
    ("IP", "224.0.0.1"),
    ("IP", "Autodetec"),
    ("IP6", "10.0.0.1"),
    ("IP6", "::1"),
    ("IP6", "fe80::1/64"),
    ("IP_AUTODETECTION_METHOD", "best"),
    ("IP_AUTODETECTION_METHOD", "interface="),
    ("IP_AUTODETECTION_METHOD", "interface=eth(0"),
    ("IP_AUTODETECTION_METHOD", "cidr=10.0.0.0/40"),
    ("IP_AUTODETECTION_METHOD", "can-reach=a,b"),
    ("IP_AUTODETECTION_METHOD", "kubernetes-internal-ip"),
    ("IP6_AUTODETECTION_METHOD", "first"),
    ("DISABLE_NODE_IP_CHECK", "maybe"),
    ("AS", "0"),
    ("AS", "4294967296"),
    ("AS", "1.65536"),
    ("AS", "sixty"),
    ("CALICO_ROUTER_ID", "0.0.0.0"),
    ("CALICO_ROUTER_ID", "fd00::1"),
    ("CALICO_ROUTER_ID", "Hash?"),
    ("CALICO_K8S_NODE_REF", "worker/1"),
    ("CALICO_ADVERTISE_CLUSTER_IPS", "10.96.0.1/12"),
    ("CALICO_ADVERTISE_CLUSTER_IPS", "10.96.0.0/12,"),
    ("USE_POD_CIDR", "always"),
    ("ETCD_ENDPOINTS", "10.0.0.1:2379"),
    ("ETCD_CA_CERT_FILE", "/nonexistent/ca.pem"),
    ("FELIX_LOGSEVERITYSCREEN", "loud"),
    ("BGP_LOGSEVERITYSCREEN", "quiet"),
    ("TORTIE_RUN_DIR", "run"),
    ("TORTIE_STATE_DIR", "lib"),
    ("TORTIE_SECRETS_DIR", "./secrets"),
    ("TORTIE_ORIGIN_VALIDATION", "on"),
    ("TORTIE_PREFIX_LIMIT", "0"),
    ("TORTIE_PREFIX_LIMIT", "1e3"),
    ("TORTIE_HOLD_TIME", "3"),
    ("TORTIE_HOLD_TIME", "8"),
    ("TORTIE_HOLD_TIME", "65536"),
    ("TORTIE_HOLD_TIME", "-1"),
    ("TORTIE_HOLD_TIME", "٣٠"),
    ("TORTIE_ROUTE_PRIORITY", "0"),
    ("TORTIE_HEALTH_ADDRESS", "9179"),
    ("TORTIE_HEALTH_ADDRESS", ":9179"),
    ("TORTIE_HEALTH_ADDRESS", "localhost:9179"),
    ("TORTIE_HEALTH_ADDRESS", "127.0.0.1"),
    ("TORTIE_HEALTH_ADDRESS", "127.0.0.1:"),
    ("TORTIE_HEALTH_ADDRESS", "127.0.0.1:0"),
    ("TORTIE_HEALTH_ADDRESS", "127.0.0.1:65536"),
    ("TORTIE_HEALTH_ADDRESS", "127.0.0.1:http"),
    ("TORTIE_HEALTH_ADDRESS", "::1:9179"),
    ("TORTIE_HEALTH_ADDRESS", "[127.0.0.1]:9179"),
    ("TORTIE_HEALTH_ADDRESS", "off"),
    ("TORTIE_CONFIG_FILE", "/nonexistent/tortie.conf"),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}={v[:20]!r}" for n, v in WRONG])
def test_a_wrong_value_is_one_sentence(nowhere: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(nowhere | {name: value})
    sentence = str(caught.value)
    assert sentence.startswith(f"{name}: ")
    assert sentence.isprintable(), "one line, nothing that moves a cursor"
    assert value[:20] in sentence or ascii(value[:20])[:-1] in sentence
    assert any(word in sentence for word in ("use ", "name an existing", "give the path"))


def test_a_hold_time_of_9_is_allowed(nowhere: dict[str, str]) -> None:
    assert read(nowhere | {"TORTIE_HOLD_TIME": "9"}).hold_time == 9


def test_who_names_the_node(nowhere: dict[str, str], tmp_path: Path) -> None:
    file = Path(nowhere["CALICO_NODENAME_FILE"])
    told = nowhere | {"HOSTNAME": "From-Env", "FELIX_FELIXHOSTNAME": "From-Felix"}
    assert read(nowhere | {"HOSTNAME": "From-Env"}).nodename == "from-env"
    assert read(told).nodename == "from-felix"
    file.write_text("from-file\n")
    assert read(told).nodename == "from-file"
    assert read(told | {"NODENAME": "from-setting"}).nodename == "from-setting"


def test_empty_counts_as_not_set(nowhere: dict[str, str]) -> None:
    blank = dict.fromkeys((s.name for s in settings.table() if s.name not in nowhere), " ")
    assert read(nowhere | blank) == read(nowhere)


def test_the_environment_beats_the_file(nowhere: dict[str, str]) -> None:
    Path(nowhere["TORTIE_CONFIG_FILE"]).write_text(
        "# of this node\nNODENAME=from-file\n ; more\nAS = 65001\nTORTIE_HOLD_TIME='30'\n"
    )
    got = read(nowhere | {"AS": "65002", "TORTIE_HOLD_TIME": ""})
    assert (got.nodename, got.asn, got.hold_time) == ("from-file", 65002, 30)


def test_felixs_names_of_etcd_are_read_after_calicos(nowhere: dict[str, str]) -> None:
    felix = nowhere | {"FELIX_ETCDENDPOINTS": "http://10.0.0.7:2379"}
    assert read(felix).etcd.endpoints == ("http://10.0.0.7:2379",)
    assert read(felix | {"ETCD_ENDPOINTS": "http://10.0.0.8:2379"}).etcd.endpoints == (
        "http://10.0.0.8:2379",
    )


def test_what_has_no_effect_is_said(nowhere: dict[str, str]) -> None:
    Path(nowhere["TORTIE_CONFIG_FILE"]).write_text("NODENAM=x\n")
    got = read(
        nowhere
        | {
            "FELIX_IPV6SUPPORT": "true",
            "CALICO_IPV4POOL_CIDR": "10.0.0.0/8",
            "WAIT_FOR_DATASTORE": "true",
            "TORTIE_HOLDTIME": "30",
            "TORTIE_LAB_AGENT": "x",
            "ETCD_DISCOVERY_SRV": "",
            "PATH": "/bin",
        }
    )
    assert [sentence.split()[0] for sentence in got.not_used] == [
        "CALICO_IPV4POOL_CIDR",
        "FELIX_IPV6SUPPORT",
        "NODENAM",
        "TORTIE_HOLDTIME",
        "WAIT_FOR_DATASTORE",
    ]
    assert "did you mean TORTIE_HOLD_TIME?" in got.not_used[3]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b c # kept", "b c # kept"),
        ('A="b c"', "b c"),
        ("A='b \"c\" \\\\'", 'b "c" \\\\'),
        (r'A="b \"c\" \\ \$ \n"', r'b "c" \ $ \n'),
        ("A=b\\", "b\\"),
        ("A=b\r", "b"),
        ("A=x=y", "x=y"),
    ],
)
def test_lines_of_the_file(line: str, value: str) -> None:
    assert parse(line) == {"A": value}


def test_an_empty_value_in_the_file_is_not_set() -> None:
    assert parse('A=\nB=""\n') == {}


@pytest.mark.parametrize("line", ["A", "=b", "A B=c", "A-B=c", "A='b", 'A="b" c', "export A=b"])
def test_a_line_that_is_not_a_setting_names_its_number_not_its_content(line: str) -> None:
    with pytest.raises(ValueError, match=r"^line 2: ") as caught:
        parse(f"# first\n{line}\n")
    assert "b" not in str(caught.value).split(":")[1].split("use")[0] or "export" in line


def test_a_file_that_cannot_be_read_says_so(nowhere: dict[str, str], tmp_path: Path) -> None:
    for content, word in ((b"\xff", "UTF-8"), (b"A" * (1 << 20) + b"=1", "longer")):
        Path(nowhere["TORTIE_CONFIG_FILE"]).write_bytes(content)
        with pytest.raises(SettingsError, match=word):
            read(nowhere)
    with pytest.raises(SettingsError, match="cannot be read"):
        read(nowhere | {"TORTIE_CONFIG_FILE": str(tmp_path)})


def test_passwords_do_not_show(nowhere: dict[str, str]) -> None:
    got = read(nowhere | {"ETCD_USERNAME": "root", "ETCD_PASSWORD": "hunter2"})
    assert got.etcd.password == "hunter2"
    assert "hunter2" not in repr(got)


def test_the_table_becomes_markdown() -> None:
    lines = settings.markdown().splitlines()
    assert len(lines) == len(settings.table()) + 2
    assert all(line.count("|") == 4 for line in lines)
    assert all(s.meaning.endswith(".") for s in settings.table())


# -- Kubernetes ----------------------------------------------------------------------------------------


def test_kubernetes_is_where_a_kubeconfig_or_a_pod_is(nowhere: dict[str, str]) -> None:
    named = {"KUBECONFIG": "/etc/kubernetes/kubeconfig"}
    assert read(nowhere).kubernetes is None
    assert read(nowhere | named).kubernetes == KubeAccess(Path("/etc/kubernetes/kubeconfig"))
    assert read(nowhere | named | {"TORTIE_KUBERNETES": "Off"}).kubernetes is None
    assert read(nowhere | {"NAMESPACE": "calico-system"}).namespace == "calico-system"
    assert read(nowhere).namespace == "kube-system"


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("TORTIE_KUBERNETES", "yes", "is neither auto nor off"),
        ("NAMESPACE", "kube/system", "is no name of a Kubernetes namespace"),
        ("NAMESPACE", "../../nodes", "is no name of a Kubernetes namespace"),
        ("NAMESPACE", "Kube-System", "is no name of a Kubernetes namespace"),
        ("NAMESPACE", "n" * 64, "is no name of a Kubernetes namespace"),
    ],
)
def test_what_makes_no_sense_of_kubernetes(
    nowhere: dict[str, str], name: str, text: str, allowed: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: .* {allowed}$"):
        read(nowhere | {name: text})
