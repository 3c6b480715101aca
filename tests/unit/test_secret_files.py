"""BGP passwords from files: what counts as one, and what is said when there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.secret_files import LONGEST, SecretFiles
from felix_like.model.bgp import SecretRef
from tests.support.unprivileged import unprivileged

REF = SecretRef("tor", "password")


def put(directory: Path, content: bytes, ref: SecretRef = REF) -> Path:
    path = directory / ref.name / ref.key
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b"secret\n\n", "secret\n"),
        (b" two words ", " two words "),
        ("schlüssel\n".encode(), "schlüssel"),
        (b"x" * LONGEST, "x" * LONGEST),
    ],
)
def test_one_line_end_is_the_editors_and_all_else_is_the_password(
    tmp_path: Path, content: bytes, password: str
) -> None:
    put(tmp_path, content)
    assert SecretFiles(tmp_path).read({REF}) == {REF: password}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; an empty password would be none"),
        (b"\n", "is empty; an empty password would be none"),
        (b"\r\n", "is empty; an empty password would be none"),
        (b"geheim\xff", "is not UTF-8 text"),
        (b"x" * (LONGEST + 1), f"is longer than {LONGEST} octets; a TCP MD5 key has 80 at most"),
    ],
)
def test_what_is_no_password_is_absent_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, complaint: str
) -> None:
    path = put(tmp_path, content)
    assert SecretFiles(tmp_path).read({REF}) == {}
    assert caplog.messages == [f"password 'tor/password' is not there: {path} {complaint}"]
    assert content.strip() == b"" or content[:4].decode() not in caplog.messages[0].replace(str(path), "")


@pytest.mark.parametrize(
    "ref",
    [
        SecretRef("..", "shadow"),
        SecretRef("tor", ".."),
        SecretRef(".", "password"),
        SecretRef("../../etc", "shadow"),
        SecretRef("tor", "../../shadow"),
        SecretRef("/etc", "shadow"),
        SecretRef("tor", "/etc/shadow"),
        SecretRef("", "password"),
        SecretRef("tor", ""),
        SecretRef("tor\0", "password"),
    ],
)
def test_a_reference_does_not_lead_out_of_the_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ref: SecretRef
) -> None:
    directory = tmp_path / "secrets"
    directory.mkdir()
    (tmp_path / "shadow").write_text("not yours")
    (directory / "password").write_text("not a secret's key")
    assert SecretFiles(directory).read({ref}) == {}
    assert "is not the name of a secret or of its key" in caplog.text


@pytest.mark.parametrize("name", ["n" * 300, "\ud800"], ids=["too long", "half a surrogate pair"])
def test_a_name_that_no_file_can_have_is_absent(tmp_path: Path, name: str) -> None:
    assert SecretFiles(tmp_path).read({SecretRef(name, "key")}) == {}


def test_links_are_followed_as_mounted_secrets_have_them(tmp_path: Path) -> None:
    put(tmp_path, b"secret", SecretRef("..data", "password"))
    (tmp_path / "tor").symlink_to(tmp_path / "..data")
    assert SecretFiles(tmp_path).read({REF}) == {REF: "secret"}


def test_a_pipe_or_a_directory_keeps_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tor").mkdir()
    os.mkfifo(tmp_path / "tor" / "password")
    (tmp_path / "tor" / "folder").mkdir()
    assert SecretFiles(tmp_path).read({REF, SecretRef("tor", "folder")}) == {}
    assert caplog.text.count("is not a regular file") == 2


def test_the_status_tells_an_unusable_file_from_an_absent_one(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path)
    files.read({REF})
    assert files.refusals() == (), "who names the password says that it is missing"
    path = put(tmp_path, b"")
    path.unlink()
    path.mkdir()
    files.read({REF, SecretRef("tor", "absent")})
    assert [str(refusal) for refusal in files.refusals()] == [
        f"password 'tor/password': {path} is not a regular file"
    ]
    path.rmdir()
    put(tmp_path, b"there")
    files.read({REF})
    assert files.refusals() == ()


def test_a_directory_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    files = SecretFiles(tmp_path)
    put(tmp_path, b"secret").parent.chmod(0)
    try:
        with unprivileged():
            assert files.read({REF}) == {}
        assert [refusal.reason for refusal in files.refusals()] == [
            f"'{tmp_path}/tor/password': Permission denied"
        ]
    finally:
        (tmp_path / "tor").chmod(0o700)


def test_what_is_wrong_is_said_once_and_again_only_when_it_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, refs = SecretFiles(tmp_path), {REF}
    absent = f"password 'tor/password' is not there: '{tmp_path}/tor/password': No such file or directory"
    files.read(refs)
    files.read(refs)
    assert caplog.messages == [absent]
    path = put(tmp_path, b"")
    files.read(refs)
    files.read(refs)
    assert len(caplog.messages) == 2
    path.write_text("there")
    assert files.read(refs) == {REF: "there"}
    path.unlink()
    assert files.read(refs) == {}
    assert caplog.messages[2:] == [absent]


def test_who_is_no_longer_asked_for_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = SecretFiles(tmp_path)
    files.read({REF})
    files.read(set())
    files.read({REF})
    assert len(caplog.messages) == 2


def test_one_that_is_missing_hides_no_other(tmp_path: Path) -> None:
    put(tmp_path, b"secret")
    assert SecretFiles(tmp_path).read({SecretRef("a", "b"), REF, SecretRef("z", "z")}) == {REF: "secret"}


def test_one_that_may_not_be_read_is_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, b"secret").chmod(0)
    with unprivileged():
        assert SecretFiles(tmp_path).read({REF}) == {}
    assert "Permission denied" in caplog.text
