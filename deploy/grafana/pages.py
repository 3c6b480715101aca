"""The dashboards as the files that Grafana provisions. Writes them:

python -m deploy.grafana.pages
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.fleet import FLEET
from deploy.grafana.one_node import ONE_NODE
from deploy.grafana.panels import Json

FOLDER = Path(__file__).parent / "dashboards"
PAGES: tuple[Json, ...] = (FLEET, ONE_NODE)


def text(page: Json) -> str:
    """As the file has it."""
    return json.dumps(page, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        (FOLDER / f"{page['uid']}.json").write_text(text(page), encoding="utf-8")
