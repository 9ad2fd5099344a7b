"""What Docker, the NVIDIA toolkit and runc say when they refuse a container, and what helps."""

from __future__ import annotations

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils._container import LACKS, advise

# Options that the client refuses by itself: tests/unit/test_container.py and the real Docker in
# tests/integration have them.
OF_THE_CLIENT = ("--shm-size", "unknown capability", "--ulimit")

_RUNC = (
    "Error starting container c1: 500 Server Error for http+docker://localhost/v1.51/containers/c1/"
    'start: Internal Server Error ("failed to create task for container: failed to create shim'
    " task: OCI runtime create failed: runc create failed: unable to start container process: error"
    " during container init: "
)
_HOOK = (
    f"{_RUNC}error running prestart hook #0: exit status 1, stdout: , stderr: Auto-detected mode as"
    " 'legacy'\nnvidia-container-cli: "
)
_DAEMON = 'Error creating container: 400 Client Error: Bad Request ("'
_SPEC = (
    "OCI runtime create failed: could not apply required modification to OCI specification: error"
    " modifying OCI spec: "
)

# What each says is of moby's sources (daemon/{apparmor_default,cdi,daemon_unix,devices,errors}.go,
# daemon/volume/mounts), of nvidia-container-toolkit's (internal/modifier, cmd/nvidia-container-
# runtime-hook) and of its issues #146, #171, #394, #434, #1537, of runc's and of public reports.
REFUSALS = [
    (
        'Error starting container c1: 500 Server Error ("could not select device driver "nvidia"'
        ' with capabilities: [[gpu]]")',
        "install the NVIDIA Container Toolkit",
    ),
    (
        f'{_DAEMON}failed to discover GPU vendor from CDI: no known GPU vendor found")',
        "`nvidia-ctk cdi generate",
    ),
    (
        f'{_DAEMON}CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=all")',
        "(CDI) is missing or out of date",
    ),
    (
        f"{_SPEC}failed to inject CDI devices: unresolvable CDI devices runtime.nvidia.com/gpu=all",
        "(CDI) is missing or out of date",
    ),
    (
        # Docker 20.10 to 28.1 without CDI (moby, daemon/pkg/oci/devices_linux.go).
        "docker: Error response from daemon: error gathering device information while adding custom"
        ' device "nvidia.com/gpu=all": no such file or directory.',
        '{"features": {"cdi": true}}',
    ),
    (
        f"{_SPEC}failed to create the automatic CDI modifier: failed to generate CDI spec for mode"
        ' "nvml": failed to initialize NVML: Unknown Error',
        "`nvidia-smi` says what is wrong",
    ),
    (
        f"{_RUNC}Running hook #0:: error running hook: exit status 1, stdout: , stderr:"
        " Auto-detected mode as 'cdi'\ninvoking the NVIDIA Container Runtime Hook directly (e.g."
        " specifying the docker --gpus flag) is not supported. Please use the NVIDIA Container"
        " Runtime (e.g. specify the --runtime=nvidia flag) instead",
        "nvidia-container-runtime.mode=auto",
    ),
    (
        f"{_HOOK}requirement error: unsatisfied condition: cuda>=12.9, please update your driver to"
        " a newer version, or use an earlier cuda container: unknown",
        "install the driver that the message names",
    ),
    (
        f"{_HOOK}initialization error: nvml error: driver/library version mismatch: unknown",
        "was updated while the old one is still loaded",
    ),
    (
        f"{_SPEC}failed to initialize NVML: Driver/library version mismatch",
        "was updated while the old one is still loaded",
    ),
    (
        f"{_HOOK}initialization error: load library failed: libnvidia-ml.so.1: cannot open shared"
        " object file: no such file or directory: unknown",
        "install all of the driver's packages",
    ),
    (f"{_HOOK}initialization error: nvml error: driver not loaded: unknown", "modprobe nvidia"),
    (f"{_HOOK}detection error: nvml error: unknown error: unknown", "dmesg | grep NVRM"),
    (
        f"{_HOOK}device error: GPU-d2d12cfb-eb9e-03f0-b007-785d32aed1b2: unknown device: unknown",
        "correct NVIDIA_VISIBLE_DEVICES",
    ),
    (f"{_HOOK}container error: cgroup subsystem devices not found: unknown", "1.8 or later"),
    (
        f"{_HOOK}mount error: failed to add device rules: unable to find any existing device"
        " filters attached to the cgroup: bpf_prog_query(BPF_CGROUP_DEVICE) failed: operation not"
        " permitted: unknown",
        "not a rootless one",
    ),
    (
        f"{_RUNC}failed to fulfil mount request: open /run/nvidia-persistenced/socket: no such file"
        ' or directory: unknown")',
        "systemctl restart nvidia-persistenced",
    ),
    (
        f"{_RUNC}failed to fulfil mount request: open /usr/lib/aarch64-linux-gnu/libcuda.so.570.86:"
        ' no such file or directory: unknown")',
        "a driver that was replaced",
    ),
    (
        "error during container init: error setting rlimits for ready process: error setting rlimit"
        " type 8: operation not permitted",
        "set sgl_ulimits",
    ),
    (
        f"{_DAEMON}AppArmor enabled on system but the docker-default profile could not be loaded:"
        " running `apparmor_parser apparmor_parser --version` failed with output: \nerror: exec:"
        ' "apparmor_parser": executable file not found in $PATH")',
        "apt-get install apparmor",
    ),
    (
        f"{_RUNC}unable to apply apparmor profile: apparmor failed to apply profile: write"
        ' /proc/self/attr/apparmor/exec: no such file or directory: unknown")',
        "systemctl restart apparmor docker",
    ),
    (
        f"{_DAEMON}cannot share the host's network namespace when user namespaces are enabled\")",
        "remove userns-remap",
    ),
    (
        f"{_DAEMON}error while creating mount source path '/home/u/sglang-observability/telemetry':"
        ' mkdir /home/u: permission denied")',
        "on NFS with root_squash",
    ),
    (
        f"{_DAEMON}error while creating mount source path '/srv/sglang/models': mkdir /srv:"
        ' read-only file system")',
        "a Docker that is a snap",
    ),
    (
        f'{_DAEMON}invalid mount config for type "bind": bind source path does not exist: /srv/a")',
        "unset DOCKER_HOST",
    ),
    (
        "Error creating container: 500 Server Error: write /var/lib/docker/overlay2/ab/link: no"
        " space left on device",
        "docker system df",
    ),
]


@pytest.mark.parametrize(("said", "remedy"), REFUSALS)
def test_dockers_refusals_have_a_remedy(said: str, remedy: str) -> None:
    advice = advise(said)
    assert remedy in advice.partition(" Docker says: ")[0]
    # The daemon's own last words are there too, shortened at most.
    assert " ".join(said.split())[-40:] in advice and len(advice) < 700


def test_each_remedy_is_for_a_refusal_and_fits_a_screen() -> None:
    used = {next(words for words, _ in LACKS if words in said) for said, _ in REFUSALS}
    assert used == {words for words, _ in LACKS if words not in OF_THE_CLIENT}
    assert all(len(text) < 400 for _, text in LACKS)


@pytest.mark.parametrize(
    "said",
    [
        "Conflict. The container name /box is already in use by container 4b1f0c",
        "error gathering device information while adding custom device: no such file or directory",
        "Error response from daemon: No such image: sha256:1",
        "context deadline exceeded",
    ],
)
def test_other_words_of_docker_get_no_remedy_that_does_not_fit(said: str) -> None:
    assert [words for words, _ in LACKS if words in said] == []
