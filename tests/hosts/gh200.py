"""A test host that looks like a GH200 to the product: what stands in is in
tests/doubles/gh200_host, and each file there says for what.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

from tests.hosts.host import TestHost, run

DOUBLES = Path(__file__).resolve().parents[1] / "doubles"
FIXTURES = DOUBLES.parent / "fixtures"
HOST_DOUBLES = DOUBLES / "gh200_host"
GITHUB = "/opt/github"
# The driver's device files, with NVIDIA's major numbers and rights (linux/Documentation:
# admin-guide/devices.txt, char 195). No program of the test opens them.
_DEVICES = {"nvidiactl": ("195", "255"), "nvidia0": ("195", "0"), "nvidia-uvm": ("511", "0")}
_GPU = {
    "name": "NVIDIA GH200 480GB",
    "memory": [97871 << 20, 97871 << 20],
    "power_limit": 900_000,
}


class Gh200Host(TestHost):
    # Its disk: as large as the inventory wants it, and as small as what lies on it.
    volumes = ()
    options = ("--tmpfs=/var/lib/docker:exec,dev,suid,size=200g",)

    def up(self) -> None:
        super().up()
        try:
            self._add_driver()
            self._add_github()
            self.put(
                {"/etc/python3.11/sitecustomize.py": (HOST_DOUBLES / "sitecustomize.py", 0o644)}
            )
            self.execute("systemctl", "restart", "docker")
        except BaseException:
            self.down()
            raise

    def put(self, files: dict[str, tuple[Path | bytes, int]], uid: int = 0) -> None:
        """Write files, with the folders that they need, as a user's."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path, (source, mode) in files.items():
                content = source if isinstance(source, bytes) else source.read_bytes()
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.size, entry.mode, entry.uid, entry.gid = len(content), mode, uid, uid
                archive.addfile(entry, io.BytesIO(content))
        subprocess.run(
            ["docker", "exec", "--interactive", self.name, "tar", "--extract", "--directory", "/"],
            input=packed.getvalue(),
            check=True,
        )

    def _add_driver(self) -> None:
        """NVIDIA's driver and container toolkit, as far as the product and Docker look at them."""
        settings = {
            "default-runtime": "nvidia",
            "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}},
        }
        driver = "/opt/driver"
        self.put(
            {
                "/usr/bin/nvidia-smi": (HOST_DOUBLES / "nvidia-smi", 0o755),
                "/usr/bin/nvidia-container-runtime": (HOST_DOUBLES / "container-runtime", 0o755),
                # Docker only looks for it, and runs it (moby, daemon/nvidia_linux.go).
                "/usr/bin/nvidia-container-runtime-hook": (b"#!/bin/sh\ncat > /dev/null\n", 0o755),
                "/etc/docker/daemon.json": (json.dumps(settings).encode(), 0o644),
                f"{driver}/nvml.json": (json.dumps({"gpus": [_GPU]}).encode(), 0o644),
                f"{driver}/nvidia_smi.py": (DOUBLES / "nvidia_smi.py", 0o644),
                f"{driver}/pynvml.py": (DOUBLES / "pynvml.py", 0o644),
                f"{driver}/fixtures/nvml_errors.json": (FIXTURES / "nvml_errors.json", 0o644),
            }
        )
        for name, (major, minor) in _DEVICES.items():
            self.execute("mknod", "--mode=0666", f"/dev/{name}", "c", major, minor)

    def _add_github(self) -> None:
        """github.com is this host itself, with a certificate that it trusts."""
        key, certificate = (str(self.folder / name) for name in ("github.key", "github.crt"))
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=github.com", "-addext", "subjectAltName=DNS:github.com"),
            *("-keyout", key, "-out", certificate),
        )
        both = Path(key).read_bytes() + Path(certificate).read_bytes()
        self.put(
            {
                "/opt/github.pem": (both, 0o600),
                "/opt/github.py": (HOST_DOUBLES / "github.py", 0o644),
                "/usr/local/share/ca-certificates/github.crt": (Path(certificate), 0o644),
            }
        )
        self.execute("update-ca-certificates")
        self.execute("mkdir", "--parents", GITHUB)
        self.execute("sh", "-c", "echo 127.0.0.1 github.com >> /etc/hosts")
        run(
            *("docker", "exec", "--detach", self.name),
            *("python3", "/opt/github.py", GITHUB, "/opt/github.pem"),
        )
