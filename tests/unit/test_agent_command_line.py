"""tortie-agent --help must not start an agent, nor may a word it does not know."""

from __future__ import annotations

import pytest

from agent.command_line import read_command_line
from agent.settings import table


def test_without_words_it_starts() -> None:
    assert read_command_line([], "1.2.3") is None


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_setting(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_command_line([word], "1.2.3")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for setting in table():
        assert f"\n  {setting.name}\n" in said
    assert "`" not in said
    assert "%%" not in said
    assert max(map(len, said.splitlines())) <= 110


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_command_line(["--version"], "1.2.3")
    assert ended.value.code == 0
    assert capsys.readouterr().out == "tortie-agent 1.2.3\n"


@pytest.mark.parametrize("words", [["start"], ["--node", "x"], ["-v"]])
def test_a_word_it_does_not_know_does_not_start_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_command_line(words, "1.2.3")
    assert ended.value.code == 2
    assert "usage: tortie-agent" in capsys.readouterr().err
