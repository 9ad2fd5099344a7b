"""How a container gets the host's GPUs: the toolkit's modes, CDI, and the driver's device files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_access as gpu_access
from ansible_collections.slice_bench.sglang.plugins.module_utils._container import Definition

GPUS, CDI = "--gpus=driver=nvidia,count=all", "--device=nvidia.com/gpu=all"
# As nvidia-container-toolkit writes it (api/config/v1/toml_test.go), with another mode.
CONFIG = """
disable-require = false

[nvidia-container-cli]
load-kmods = true

[nvidia-container-runtime]
#debug = "/var/log/nvidia-container-runtime.log"
log-level = "info"
mode = "{mode}"
runtimes = ["runc", "crun"]

[nvidia-container-runtime.modes.cdi]
default-kind = "nvidia.com/gpu"
spec-dirs = ["/etc/cdi", "/var/run/cdi"]

[nvidia-container-runtime.modes.legacy]
cuda-compat-mode = "ldconfig"
"""


def lay(root: Path, name: str, text: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def devices(root: Path, mode: int, gid: int) -> Callable[[str], os.stat_result]:
    """The driver's device files, of one mode and group; a machine without a GPU makes none."""
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        lay(root, f"dev/{name}")

    def status(path: str) -> os.stat_result:
        real = os.stat(path)
        fields = (stat.S_IFCHR | mode, *real[1:5], gid, *real[6:10])
        return os.stat_result(fields, {"st_rdev": os.makedev(195, 0)})

    return status


@pytest.mark.parametrize(
    ("config", "mode", "request_"),
    [
        (None, "auto", GPUS),
        ("", "auto", GPUS),
        (CONFIG.format(mode="auto"), "auto", GPUS),
        (CONFIG.format(mode="legacy"), "legacy", GPUS),
        (CONFIG.format(mode="cdi"), "cdi", CDI),
        # A mode of another section is not the runtime's.
        ('[nvidia-container-runtime]\nlog-level = "info"\n[other]\nmode = "cdi"\n', "auto", GPUS),
        ('[nvidia-container-runtime]\n#mode = "cdi"\n', "auto", GPUS),
    ],
)
def test_gpus_are_asked_for_as_the_toolkits_mode_takes_it(
    tmp_path: Path, config: str | None, mode: str, request_: str
) -> None:
    if config is not None:
        lay(tmp_path, "etc/nvidia-container-runtime/config.toml", config)
    assert gpu_access.toolkit_mode(str(tmp_path)) == mode
    assert gpu_access.arguments(str(tmp_path)) == [request_]


def test_a_toolkit_in_cdi_mode_needs_a_description_of_the_gpus(tmp_path: Path) -> None:
    assert gpu_access.problem(str(tmp_path)) is None
    lay(tmp_path, "etc/nvidia-container-runtime/config.toml", CONFIG.format(mode="cdi"))
    told = gpu_access.problem(str(tmp_path))
    assert told and "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` as root" in told
    lay(tmp_path, "var/run/cdi/nvidia.yaml")
    assert gpu_access.problem(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("mode", "gid", "added", "refused"),
    [
        (0o666, 0, [], False),
        (0o666, 44, [], False),
        # NVreg_DeviceFileMode=0660 with NVreg_DeviceFileGID=44 (video).
        (0o660, 44, [44], False),
        (0o660, 0, [], True),
        (0o600, 44, [], True),
        (0o640, 44, [], True),
    ],
)
def test_a_group_that_alone_may_open_the_gpus_is_added(
    tmp_path: Path, mode: int, gid: int, added: list[int], refused: bool
) -> None:
    status = devices(tmp_path, mode, gid)
    expected = [GPUS, *(f"--group-add={each}" for each in added)]
    assert gpu_access.arguments(str(tmp_path), status) == expected
    told = gpu_access.problem(str(tmp_path), status)
    assert (told is not None) is refused
    assert told is None or ("NVreg_DeviceFileMode" in told and len(told) < 400)


def test_a_container_gets_the_gpus_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_access, "arguments", lambda: [CDI, "--group-add=44"])
    fields: dict[str, Any] = {
        "capabilities": [], "security_opts": [], "ulimits": [], "volumes": [],
    }  # fmt: skip
    definition = Definition(
        image="i", user="1:1", gpus=True, shm_size="", stop_timeout=1, environment={}, digest="d",
        **fields,
    )  # fmt: skip
    assert {CDI, "--group-add=44"} < set(definition.limits())
    assert GPUS not in definition.limits()


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs", None])
@pytest.mark.parametrize("linked", [True, False])
def test_gpus_that_a_daemon_reload_would_take_are_told(
    tmp_path: Path, driver: str | None, linked: bool
) -> None:
    status = devices(tmp_path, 0o666, 0)
    if linked:
        lay(tmp_path, "dev/char/195:0")
    told = gpu_access.reload_warning({"CgroupDriver": driver}, str(tmp_path), status)
    assert (told is not None) is (driver == "systemd" and not linked)
    assert told is None or "`nvidia-ctk system create-dev-char-symlinks --create-all`" in told
