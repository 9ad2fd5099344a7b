"""Stands for jaeger-all-in-one 1.73.0 and dcgm-exporter 4.4.1-4.5.2, behind service.c: their
versions, their ports, their pages.

`/stand-in` tells how it was started. It refuses a flag that the real program does not have (read in
the sources of that release).
"""

import http.server
import json
import os
import sys
import threading
from pathlib import Path

FLAGS = {
    "jaeger-all-in-one": {
        "badger.ephemeral",
        "badger.directory-key",
        "badger.directory-value",
        "badger.span-store-ttl",
        "query.http-server.host-port",
        "query.grpc-server.host-port",
        "collector.otlp.enabled",
        "collector.otlp.grpc.host-port",
        "collector.otlp.http.host-port",
        "collector.grpc-server.host-port",
        "collector.http-server.host-port",
        "admin.http.host-port",
        "log-level",
    },
    "dcgm-exporter": {"address", "collectors", "collect-interval", "remote-hostengine-info"},
}
LISTENS = (
    "query.http-server.host-port",
    "collector.otlp.grpc.host-port",
    "collector.otlp.http.host-port",
    "address",
)


def main() -> None:
    program = Path(sys.argv[1]).name
    words = sys.argv[2:]
    if words == ["version"]:
        print('{"gitCommit":"0","gitVersion":"v1.73.0","buildDate":"2025-09-03"}')
        print("WARNING: End-of-life Notice for Jaeger v1", file=sys.stderr)
        return
    if words == ["--version"]:
        print("DCGM Exporter version 4.4.1-4.5.2")
        return
    if program == "dcgmi":
        # No engine of this kind listens where a test has another program listen.
        sys.exit(0 if os.environ.get("STAND_IN_HOST_ENGINE") else 1)
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    if unknown := set(flags) - FLAGS[program]:
        sys.exit(f"{program}: unknown flag: {', '.join(unknown)}")
    for flag in ("badger.directory-key", "badger.directory-value"):
        if flag in flags:
            Path(flags[flag]).mkdir(parents=True, exist_ok=True)
    told = {
        "program": sys.argv[1],
        "flags": flags,
        "storage": os.environ.get("SPAN_STORAGE_TYPE"),
        "capabilities": os.environ["STAND_IN_CAPEFF"],
        "uid": os.getuid(),
    }
    metrics = ""
    if "collectors" in flags:
        names = [
            line.split(",")[0]
            for line in Path(flags["collectors"]).read_text().splitlines()
            if line.startswith("DCGM_")
        ]
        metrics = "".join(f'{name}{{gpu="0"}} 1\n' for name in names)

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (
                json.dumps(told)
                if self.path == "/stand-in"
                else metrics
                if self.path == "/metrics"
                else "KO"
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    servers = []
    for flag in LISTENS:
        if flag in flags:
            host, _, port = flags[flag].rpartition(":")
            servers.append(http.server.ThreadingHTTPServer((host, int(port)), Pages))
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


main()
