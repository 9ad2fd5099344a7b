"""A test host with Debian sid's Podman (5.8.6) and without a Docker daemon: Docker's client asks
root's Podman by its socket, as DOCKER_HOST in /etc/environment says.
"""

from __future__ import annotations

from tests.hosts.containerd import ContainerdHost

SOCKET = "unix:///run/podman/podman.sock"
# sshd's PAM reads /etc/environment for commands too. Without systemd, which would start it by its
# socket, the service runs from the start.
_SERVICES = f"""
set -e
ssh-keygen -A
mkdir -p /run/sshd /run/podman
echo DOCKER_HOST={SOCKET} >> /etc/environment
podman system service --time=0 {SOCKET} > /var/log/podman.log 2>&1 &
exec /usr/sbin/sshd -D
"""


class PodmanHost(ContainerdHost):
    image = "sglang-testhost-podman"
    # The test host's Dockerfile wants Docker's service to be there; nothing starts it.
    packages = "docker.io docker-cli podman"
    log = "/var/log/podman.log"
    volumes = ("/var/lib/containers",)
    command = ("sh", "-c", _SERVICES)
    options = (f"--env=DOCKER_HOST={SOCKET}",)
