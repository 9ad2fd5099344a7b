"""Runs once, in the image's build: records in /etc/sgl/image.json what this image is and which
versions came with it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Sequence

from sgl_admin import __version__
from sgl_admin.base import files, paths, versions
from sgl_admin.contract.services import SERVICES
from sgl_admin.sglang import ENGINE

# Docker's names of architectures, as in the manifest's `architecture`.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def binary_version(command: Sequence[str]) -> str | None:
    """The first dotted number that a program says of itself; None where the flavour does not have
    the program.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except FileNotFoundError:
        return None
    # dcgm-exporter's has two parts: its DCGM's, and its own.
    found = re.search(r"\d+\.\d+(\.\d+)*(-\d+(\.\d+)+)?", answer.stdout + answer.stderr)
    return found.group() if found else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--base-name", required=True)
    parser.add_argument("--base-digest", required=True)
    parser.add_argument("--git-revision", default="unknown")
    # Of each release archive: its file, its digest, and whether that was pinned.
    parser.add_argument("--downloads", type=json.loads, default={})
    arguments = parser.parse_args()
    flavour = files.read_json(paths.FLAVOUR) or {}
    files.write_json(
        paths.IMAGE_FACTS,
        {
            "flavour": flavour["flavour"],
            "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
            "image_inputs": arguments.inputs,
            "base_image": {"name": arguments.base_name, "digest": arguments.base_digest},
            "git_revision": arguments.git_revision,
            "downloads": arguments.downloads,
            "versions": {
                ENGINE.name: ENGINE.version(),
                "torch": versions.installed("torch"),
                **{service.name: binary_version(service.version) for service in SERVICES},
                "sgl_admin": __version__,
            },
        },
        mode=0o644,
    )


if __name__ == "__main__":
    main()
