# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a container gets this host's GPUs: by which request, with which groups, and what would take
them away from it.

The toolkit's configuration is that of nvidia-container-toolkit (api/config/v1): in mode `cdi` its
hook refuses Docker's `--gpus` (cmd/nvidia-container-runtime-hook/hook_config.go), and Docker is
asked for a CDI device in its place. Docker knows CDI from 25 on, by default from 28.2 on.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any

_CONFIG = "etc/nvidia-container-runtime/config.toml"
_SPEC_FOLDERS = ("etc/cdi", "var/run/cdi")
_SPEC_ENDINGS = (".yaml", ".yml", ".json")
# The section's own lines: those before the next section.
_MODE = re.compile(
    r"^\[nvidia-container-runtime\]\s*$(?:\n(?!\s*\[).*)*?\n\s*mode\s*=\s*[\"'](\w[\w-]*)[\"']",
    re.MULTILINE,
)
_DEVICE = re.compile(r"nvidia(?:\d+|ctl|-uvm|-uvm-tools)")
# What the driver's NVreg_DeviceFileMode leaves to whom.
_GROUP_MAY, _OTHERS_MAY = stat.S_IRGRP | stat.S_IWGRP, stat.S_IROTH | stat.S_IWOTH
GENERATE = "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root"

Stat = Callable[[str], os.stat_result]


def toolkit_mode(root: str = "/") -> str:
    """`auto` where the toolkit's configuration does not say."""
    try:
        with open(os.path.join(root, _CONFIG), encoding="utf-8", errors="replace") as stream:
            found = _MODE.search(stream.read(1 << 20))
    except OSError:
        return "auto"
    return found[1] if found else "auto"


def has_cdi_spec(root: str = "/") -> bool:
    """Whether the GPUs are described for CDI."""
    for folder in _SPEC_FOLDERS:
        try:
            names = os.listdir(os.path.join(root, folder))
        except OSError:
            continue
        if any("nvidia" in name and name.endswith(_SPEC_ENDINGS) for name in names):
            return True
    return False


def arguments(root: str = "/", status: Stat = os.stat) -> list[str]:
    """Options of `docker create` that give a container all GPUs, and its user the right to open
    them.
    """
    request = (
        "--device=nvidia.com/gpu=all"
        if toolkit_mode(root) == "cdi"
        else "--gpus=driver=nvidia,count=all"
    )
    return [request, *(f"--group-add={gid}" for gid in groups(root, status))]


def groups(root: str = "/", status: Stat = os.stat) -> list[int]:
    """The groups that alone may open the GPUs' device files; root's own is left out."""
    found = {
        entry.st_gid
        for _name, entry in _devices(root, status)
        if entry.st_mode & _GROUP_MAY == _GROUP_MAY and not _open_to_all(entry)
    }
    return sorted(found - {0})


def problem(root: str = "/", status: Stat = os.stat) -> str | None:
    """Why a container cannot get the GPUs, with the remedy."""
    if toolkit_mode(root) == "cdi" and not has_cdi_spec(root):
        return (
            "the NVIDIA container toolkit is set to mode cdi, and no description of the GPUs lies"
            f" in /etc/cdi or /var/run/cdi: run {GENERATE}, and again after each change of the"
            " driver"
        )
    for name, entry in _devices(root, status):
        if not _open_to_all(entry) and (entry.st_gid == 0 or not entry.st_mode & stat.S_IWGRP):
            return (
                f"only root may open /dev/{name}, and the container does not run as root: set the"
                " driver's NVreg_DeviceFileMode=0666, or NVreg_DeviceFileMode=0660 with"
                " NVreg_DeviceFileGID of a group, in /etc/modprobe.d, and reload the driver"
            )
    return None


def reload_warning(info: dict[str, Any], root: str = "/", status: Stat = os.stat) -> str | None:
    """What to say where `systemctl daemon-reload` takes the GPUs from containers: systemd manages
    their control groups, and finds devices by /dev/char (NVIDIA/nvidia-container-toolkit#48).
    """
    if info.get("CgroupDriver") != "systemd":
        return None
    for _name, entry in _devices(root, status):
        number = f"{os.major(entry.st_rdev)}:{os.minor(entry.st_rdev)}"
        if not os.path.lexists(os.path.join(root, "dev/char", number)):
            return (
                "`systemctl daemon-reload` will take the GPUs from the running container, as"
                f" /dev/char/{number} is missing: run `nvidia-ctk system create-dev-char-symlinks"
                " --create-all` as root, at each boot"
            )
    return None


def _open_to_all(entry: os.stat_result) -> bool:
    return entry.st_mode & _OTHERS_MAY == _OTHERS_MAY


def _devices(root: str, status: Stat) -> Iterator[tuple[str, os.stat_result]]:
    """The driver's device files with their status, those that every CUDA program opens."""
    folder = os.path.join(root, "dev")
    try:
        names = sorted(name for name in os.listdir(folder) if _DEVICE.fullmatch(name))
    except OSError:
        return
    for name in names:
        try:
            entry = status(os.path.join(folder, name))
        except OSError:
            continue
        if stat.S_ISCHR(entry.st_mode):
            yield name, entry
