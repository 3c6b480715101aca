"""Images for those who observe the compose lab, made without a registry, under the names that
docker-compose.yml has: Debian's Prometheus, and a stand-in that reads, writes and asks where Grafana does.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support.container_engine import CLIENT

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
STAND_IN = r"""
import http.server, json, pathlib, re, urllib.request
for folder in ("/var/lib/grafana", "/tmp"):
    pathlib.Path(folder, "written").touch()
for board in pathlib.Path("/etc/grafana/dashboards").glob("*.json"):
    assert json.loads(board.read_text())["panels"]
source = pathlib.Path("/etc/grafana/provisioning/datasources/prometheus.yml").read_text()
url = re.search(r"url: (\S+)", source)[1]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        urllib.request.urlopen(url + "/-/ready", timeout=5).read()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"stands_in_for_grafana 1\n")
http.server.ThreadingHTTPServer(("0.0.0.0", 3000), Answer).serve_forever()
"""
"""Is well while the data source that Grafana is told of answers."""
RECIPES = {
    "prometheus": """
        FROM tortie-lab:dev
        RUN apt-get update && apt-get install -y -q --no-install-recommends prometheus
        ENTRYPOINT ["/usr/bin/prometheus"]
        """,
    "grafana": f"""
        FROM tortie:dev
        HEALTHCHECK NONE
        CMD {json.dumps(["/opt/tortie/bin/python3", "-c", STAND_IN])}
        """,
}


def services() -> dict[str, dict[str, Any]]:
    """Those that docker-compose.yml starts on demand."""
    every = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: service for name, service in every.items() if "profiles" in service}


def build(environ: Mapping[str, str]) -> None:
    """Both images, from those of the lab. Raises AssertionError with the engine's words."""
    for name, service in services().items():
        image = re.fullmatch(r"\$\{\w+:-(\S+)\}", service["image"])
        assert image is not None, service["image"]
        done = subprocess.run(
            [CLIENT, "build", "-q", "--network=host", "-t", image[1], "-"],
            input=RECIPES[name], env={**environ, "DOCKER_BUILDKIT": "1"},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
