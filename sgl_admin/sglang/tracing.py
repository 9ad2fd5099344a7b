"""Where the server's traces go: to the run's Jaeger, or whatever speaks OTLP in its place."""

from __future__ import annotations

import urllib.parse
from typing import Any

from sgl_admin.base import versions

# Without one of them SGLang takes the flags and sends nothing.
_PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry-exporter-otlp-proto-http",
)


def missing_packages() -> list[str]:
    """The packages without which the server of this image cannot send its traces."""
    return [name for name in _PACKAGES if versions.installed(name) is None]


def arguments(manifest: dict[str, Any], otlp_flag: str) -> list[str]:
    """Of the server, where the run's manifest says that tracing runs."""
    if manifest.get("telemetry_surfaces", {}).get("tracing", {}).get("status") != "running":
        return []
    jaeger = manifest["services"]["jaeger"]
    host = urllib.parse.urlsplit(jaeger["url"]).hostname or "127.0.0.1"
    return [
        "--enable-trace",
        otlp_flag,
        f"{f'[{host}]' if ':' in host else host}:{jaeger['otlp_grpc']}",
    ]
