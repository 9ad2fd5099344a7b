"""An installation on the fault image: the product's own programs, with a double of the server and a
shim that fails on demand.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.installation import IMAGE, Site, docker, wait_for

FAULT_IMAGE = "sglang-dev-faults:local"
CONTEXT = Path(__file__).resolve().parent / "image"
# Where the shim's folder is in the container.
SHIM = "/faults"


@dataclass
class FaultSite(Site):
    """A Site of the fault image, whose server is the double unless `environment` says otherwise."""

    container: str = "sglang-dev-faults"
    environment: dict[str, str] = field(default_factory=lambda: {"SGL_TEST_SERVER": "1"})

    @property
    def variables(self) -> dict[str, Any]:
        return {
            **super().variables,
            "sgl_image": FAULT_IMAGE,
            # Samples come soon, so that a proof takes no second.
            "sgl_scrape_interval": "200ms",
            "sgl_environment": self.environment,
        }

    @property
    def shim(self) -> Path:
        """The shim's folder; outside the tree, which the product's programs own."""
        return self.root.parent / "shim"

    def ensure(
        self, *arguments: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`caches ensure`, with more environment: what the double or the shim is to do in this prep
        alone.
        """
        options = tuple(f"--env={key}={value}" for key, value in (environment or {}).items())
        return self.admin("caches", "ensure", "--model", self.model, *arguments, options=options)

    def create(self, template: dict[str, Any], of: Site) -> None:
        """Create the container as the playbook created another installation's, with the shim's
        folder mounted and counting on.

        `template` is what Docker says of that container, and `of` is its installation. Without a
        restart policy: a container that is killed stays down, to be looked at.
        """

        def own(text: str) -> str:
            return text.replace(str(of.root), str(self.root))

        given, host = template["Config"], template["HostConfig"]
        environment = {
            **dict(own(line).split("=", 1) for line in given["Env"] if line.startswith("SGL_")),
            **{f"SGL_{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
            "SGL_CONTAINER_NAME": self.container,
            **self.environment,
            "SGL_TEST_FAULTS": SHIM,
        }
        shutil.rmtree(self.shim, ignore_errors=True)
        self.shim.mkdir()
        self.shim.chmod(0o777)
        docker("rm", "--force", self.container, check=False)
        docker(
            "create",
            "--name",
            self.container,
            "--user",
            given["User"],
            "--stop-timeout",
            str(given["StopTimeout"]),
            "--network",
            host["NetworkMode"],
            "--ipc",
            host["IpcMode"],
            "--shm-size",
            str(host["ShmSize"]),
            *(f"--cap-drop={name}" for name in host["CapDrop"]),
            *(f"--security-opt={option}" for option in host["SecurityOpt"]),
            *(
                f"--mount=type=bind,source={own(mount['Source'])},target={mount['Target']}"
                for mount in host["Mounts"]
            ),
            f"--volume={self.shim}:{SHIM}",
            *(f"--env={key}={value}" for key, value in environment.items()),
            FAULT_IMAGE,
        )

    def start(self) -> None:
        """Start the container; returns when its run is published."""
        before = self.pointer.read_text() if self.pointer.exists() else None
        docker("start", self.container)
        wait_for(lambda: self.published(before), "the run to be published")

    def published(self, before: str | None) -> bool:
        """Whether the pointer names another run than it did. Fails where the container ended
        instead.
        """
        if self.pointer.exists() and self.pointer.read_text() != before:
            return True
        assert self.state()["Running"], self.diagnosis()
        return False

    def commands(self) -> list[str]:
        """The command line of each process in the container, as the host sees it: faster than a
        process inside.
        """
        done = docker("top", self.container, "-eo", "pid,args")
        return [
            line.split(None, 1)[1]
            for line in done.stdout.splitlines()[1:]
            if len(line.split(None, 1)) == 2
        ]


def build_fault_image(base: str = IMAGE, tag: str = FAULT_IMAGE) -> None:
    """Put the fault image on top of the product's, as that is now; a second's work, and its labels
    are inherited.
    """
    docker("build", "--quiet", "--tag", tag, "--build-arg", f"BASE={base}", str(CONTEXT))
