"""The README's tables come from the code."""

from __future__ import annotations

from pathlib import Path

from agent.settings import markdown

README = Path(__file__).parents[2] / "README.md"


def between(marker: str) -> str:
    text = README.read_text(encoding="utf-8")
    return text.partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0]


def test_the_table_of_settings_is_the_code_s_own() -> None:
    assert between("settings").strip() == markdown().strip()
