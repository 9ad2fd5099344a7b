"""The trial of a container's settings: services are started for a moment, by doubles that end or
answer as Prometheus 3.5.3 does.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from sgl_admin.base import files, paths
from sgl_admin.init import trial

# What Prometheus 3.5.3 prints on standard error; its usage goes to standard output.
BAD_DURATION = (
    'time=2026-11-28T05:33:16.422Z level=ERROR source=main.go:580 msg="Error loading config'
    ' (--config.file=p.yml)" file=/tmp/p.yml err="parsing YAML file p.yml: not a valid duration'
    ' string: \\"often\\""'
)
BAD_SIZE = "Error parsing command line arguments: units: invalid huge"
_PROMETHEUS = """#!{python}
import sys, http.server, pathlib, re
print("usage: prometheus [<flags>]\\n  --log.format=logfmt  error")
config = pathlib.Path(next(w for w in sys.argv if w.startswith("--config.file=")).split("=")[1])
interval = re.search("scrape_interval: (\\\\S+)", config.read_text())[1]
if interval == "often":
    sys.exit({duration!r})
if "--storage.tsdb.retention.size=huge" in sys.argv:
    print({size!r}, file=sys.stderr)
    sys.exit(2)
address = next(w for w in sys.argv if w.startswith("--web.listen-address=")).split("=")[1]
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/-/ready" else 404)
        self.end_headers()
    def log_message(self, *_): pass
host, port = address.split(":")
pathlib.Path({told!r}).write_text(" ".join(sys.argv))
http.server.HTTPServer((host, int(port)), Page).serve_forever()
"""


@pytest.fixture
def told(container: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the double of Prometheus writes how it was started, once it listens."""
    files.write_json(paths.FLAVOUR, {"services": ["prometheus", "node_exporter"]})
    monkeypatch.setattr(trial.paths, "relocate", lambda root: _below(root, monkeypatch))
    told = tmp_path / "told"
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    source = _PROMETHEUS.format(
        python=sys.executable, duration=BAD_DURATION, size=BAD_SIZE, told=str(told)
    )
    program.write_text(source)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return told


def _below(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `relocate`, and undone after the test."""
    for name in ("RUNS", "PROMETHEUS", "JAEGER"):
        monkeypatch.setattr(paths, name, root / name.lower())


def test_settings_that_are_right_are_no_problem_and_leave_nothing(told: Path) -> None:
    before = sorted(paths.TELEMETRY.rglob("*"))
    assert list(trial.problems()) == []
    assert "127.0.0.1:" in told.read_text(), "it was really started"
    assert sorted((told.parent / "container" / "telemetry").rglob("*")) == before
    started = next(w for w in told.read_text().split() if "listen-address" in w)
    assert started.rpartition(":")[2] not in ("0", "9090"), "a port of its own"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SGL_SCRAPE_INTERVAL", "often", 'not a valid duration string: "often"'),
        ("SGL_TSDB_RETENTION_SIZE", "huge", "units: invalid huge"),
        ("SGL_PROMETHEUS_PORT", "http", "is not a number"),
        ("SGL_PROMETHEUS_PORT", "9100", "port 9100 is given to prometheus and node_exporter"),
        ("SGL_NODE_EXPORTER_PORT", "30000", "port 30000 is given to node_exporter and sglang"),
    ],
)
def test_each_setting_that_keeps_a_service_from_starting_is_one_sentence(
    told: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    (problem,) = trial.problems()
    assert words in problem and len(problem) < 400 and "\n" not in problem
    assert "usage" not in problem


def test_a_service_whose_program_is_missing_is_named(
    told: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = trial.problems()
    assert problem.startswith("prometheus does not start") and "No such file" in problem


def test_a_port_that_the_image_does_not_use_is_not_compared(
    told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGL_DCGM_EXPORTER_PORT", "9090")
    assert list(trial.problems()) == []
