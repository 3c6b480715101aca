"""Where etcd is: the environment, calicoctl's file, and sentences for what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from felix_like.datastore.config import ConfigError, EtcdConfig


def file_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "calicoctl.cfg"
    path.write_text(f"apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n{text}")
    return str(path)


def test_the_environment_alone() -> None:
    env = {"ETCD_ENDPOINTS": "http://10.0.0.1:2379, http://[fd00::1],unix:///run/etcd.sock"}
    config = EtcdConfig.from_environment(env)
    assert config.endpoints == ("http://10.0.0.1:2379", "http://[fd00::1]:2379", "unix:///run/etcd.sock")
    assert not config.secure


def test_the_calico_prefix_wins_and_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    named = file_of(tmp_path, "  etcdEndpoints: http://a:1\n  etcdUsername: u\n  etcdPassword: p\n")
    assert EtcdConfig.from_environment({}, named).endpoints == ("http://a:1",)
    env = {"ETCD_ENDPOINTS": "http://b:1", "CALICO_ETCD_ENDPOINTS": "http://c:1"}
    config = EtcdConfig.from_environment(env, named)
    assert (config.endpoints, config.username) == (("http://c:1",), "u")


@pytest.mark.parametrize(
    "endpoint",
    ["10.0.0.1:2379", "ftp://a:1", "http://a:x", "http://", "unix://rel", "http://a/b", "http://a\n:1"],
)
def test_endpoints_that_are_none_are_quoted(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="ETCD_ENDPOINTS"):
        EtcdConfig.from_environment({"ETCD_ENDPOINTS": endpoint})


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"ETCD_USERNAME": "u"}, "set both or neither"),
        ({"ETCD_CA_CERT_FILE": "/nonexistent.pem"}, "ETCD_CA_CERT_FILE.*nonexistent"),
        ({"ETCD_DISCOVERY_SRV": "example.com"}, "ETCD_DISCOVERY_SRV.*ETCD_ENDPOINTS"),
        ({"DATASTORE_TYPE": "kubernetes"}, "etcdv3"),
        ({"ETCD_ENDPOINTS": "https://a:1,http://b:1"}, "one scheme"),
    ],
)
def test_settings_that_cannot_be_used(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EtcdConfig.from_environment(env)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        EtcdConfig.from_environment({}, str(tmp_path / "missing"))
    other = tmp_path / "other"
    for text in ("kind: Node\n", "[1]", ":\n  - {", "\x00"):
        other.write_text(text)
        with pytest.raises(ConfigError, match="other"):
            EtcdConfig.from_environment({}, str(other))
    with pytest.raises(ConfigError, match="etcdEndpoints"):
        EtcdConfig.from_environment({}, file_of(tmp_path, "  etcdEndpoints: [a]\n"))


def test_inline_certificates_and_files_do_not_mix(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("x")
    inline = "  etcdEndpoints: https://a:1\n  etcdKey: k\n  etcdCert: c\n  etcdCACert: a\n"
    assert EtcdConfig.from_environment({}, file_of(tmp_path, inline)).cert == "c"
    with pytest.raises(ConfigError, match="cannot be mixed"):
        EtcdConfig.from_environment({"ETCD_CA_CERT_FILE": str(pem)}, file_of(tmp_path, inline))


def test_secrets_do_not_show() -> None:
    shown = repr(EtcdConfig(username="u", password="tiger", cert="pem-c", key="pem-k"))
    assert "tiger" not in shown
    assert "pem-" not in shown
