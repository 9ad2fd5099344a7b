# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The health of a host's NVIDIA GPUs: what nvidia-smi, the kernel's log and /proc say of them, and
what stands in the way of using them.

One `nvidia-smi -q -x` describes all GPUs. Its elements are those of drivers 535 to 595; fields that
a driver does not report are unknown, never faults. nvidia-smi's exit codes are NVML's
(nvmlReturn_t), and so are its words for them (nvmlErrorString). Xid numbers are those of NVIDIA's
"XID Errors" and its catalog. What is advised on Grace is in NVIDIA's "Grace Performance Tuning
Guide" (Operating System Settings: 64 KiB pages, and transparent huge pages being too large with
them) and in its "Grace CPU Benchmarking Guide" (Platform Configuration: init_on_alloc and
numa_balancing off). Which CUDA runs on which driver is in "CUDA Compatibility". Memory is in MiB.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import _gpu_access as gpu_access
from ._contract import records
from ._contract.texts import one_line
from ._docker_cli import DockerCli, Runner
from ._docker_health import Verdict
from ._smi_xml import NO_VALUE, Log, Part, number

# Eight GPUs take 0.4 MB.
_MAX_ANSWER = 8 * 2**20
_MAX_GPUS = 64
_MAX_PROCESSES = 64
_MAX_FILE = 2**20
_MAX_POLICIES = 4096
_MAX_LOG = 16 * 2**20
_MAX_RECORDS = 200_000
_UNKNOWN = "unknown"
_CORRUPT_INFOROM = 14
# What helps where nvidia-smi fails, by its exit code.
_SMI_REMEDIES = {
    4: (
        "this user may not open the GPUs' device files: set ansible_become, or let the user open"
        " /dev/nvidia* (the driver's option NVreg_DeviceFileMode)"
    ),
    6: (
        "no GPU is bound to the driver: `lspci -k -d 10de:` shows which driver holds them, `dmesg |"
        " grep NVRM` why"
    ),
    9: (
        "the driver is not loaded: `modprobe nvidia` as root; if that fails, `dmesg` says why (a"
        " kernel that it was not built for, Secure Boot)"
    ),
    12: "the driver's library is missing: install all of the driver's packages, of one version",
    15: "a GPU is lost to the driver: reboot the host, and have the hardware checked",
    16: "a GPU requires a reset: `nvidia-smi -r` as root, or reboot the host",
    17: (
        "the operating system keeps the GPUs' devices from this process: prepare the host itself,"
        " not a container on it"
    ),
    18: (
        "the driver was updated while the old one is still loaded: reboot the host, or end what"
        " uses the GPUs and reload the driver's modules"
    ),
}
# Older releases end with 1 or 255 whatever it is, and "No devices" may even end with 0.
_SMI_WORDS = (
    ("Insufficient Permissions", 4),
    ("No devices were found", 6),
    ("couldn't communicate with the NVIDIA driver", 9),
    ("couldn't find libnvidia-ml.so", 12),
    ("GPU is lost", 15),
    ("GPU requires reset", 16),
    ("Driver/library version mismatch", 18),
)
# nvidia-smi's line for a GPU that it leaves out.
_LEFT_OUT = "Unable to determine the device handle for"
# States of a fabric in which CUDA cannot use a GPU (nvmlGpuFabricState_t).
_FABRIC_UNREADY = ("Not Started", "In Progress")
# Fields that decide, with what they may hold; another value must not pass for a good one.
_VALUES = {
    "current_mig": ("MIG mode", ("Enabled", "Disabled")),
    "pending_mig": ("pending MIG mode", ("Enabled", "Disabled")),
    "persistence_mode": ("persistence mode", ("Enabled", "Disabled")),
    "compute_mode": (
        "compute mode",
        ("Default", "Exclusive_Process", "Exclusive_Thread", "Prohibited"),
    ),
    "fabric/state": ("fabric state", (*_FABRIC_UNREADY, "Completed")),
}
# Elements that hold others: a text of their own is what is left of those, or says "no value".
_GROUPS = (
    *("mig_mode", "fb_memory_usage", "ecc_mode", "ecc_errors", "volatile", "remapped_rows"),
    *("fabric", "processes", "process_info"),
)
_SLOWDOWNS = (
    "hw_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "sw_thermal_slowdown",
)
# SGLang's last images for a version of CUDA (upstream's docs/get-started/install.mdx).
_LAST_IMAGE = {
    12: (
        " (SGLang's last is lmsysorg/sglang:v0.5.19-cu129: set sgl_image_base to it, and"
        " sgl_image_cuda to 12.9)"
    )
}
# The first driver of each major version of CUDA.
_FIRST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-f:.]{4,20})\): (\d{1,4})\b", re.ASCII | re.IGNORECASE
)
# journalctl's words where this user may not read the kernel's messages.
_JOURNAL_CLOSED = ("insufficient permissions", "You are currently not seeing messages")
_PROGRAM = "look at the program that ran then; the GPU itself is seldom the cause"
_XIDS = {
    13: f"a program made the GPU's engine fail (an illegal instruction or address): {_PROGRAM}",
    31: f"a program reached for memory that was not its own (a page fault): {_PROGRAM}",
    43: f"a program's work was stopped after an error of its own: {_PROGRAM}",
    45: (
        "a program's work was cleared away, as it was killed or after another error: look for an"
        " Xid before it"
    ),
    48: (
        "memory had an error that ECC could not correct: reset the GPU (`nvidia-smi -r`), and"
        " replace the GPU if the error returns"
    ),
    63: (
        "a bad piece of memory will be taken out of use: reset the GPU (`nvidia-smi -r`) for that"
        " to happen"
    ),
    64: (
        "a bad piece of memory could not be taken out of use: reset the GPU (`nvidia-smi -r`), and"
        " replace the GPU if the error returns"
    ),
    74: (
        "an NVLink connection failed: reset the GPUs (`nvidia-smi -r`), and have links and bridges"
        " checked (`nvidia-smi nvlink -e`)"
    ),
    79: (
        "the GPU fell off the bus: reboot the host, and have power, cooling and seat of the GPU"
        " checked"
    ),
    94: (
        "an uncorrectable memory error hit one program alone: start that program again, and reset"
        " the GPU (`nvidia-smi -r`) once idle"
    ),
    95: (
        "an uncorrectable memory error may have hit any program: reset the GPU (`nvidia-smi -r`)"
        " before it is used again"
    ),
    119: (
        "the GPU's system processor did not answer: reset the GPU (`nvidia-smi -r`), or reboot, and"
        " update the driver if that comes again"
    ),
    120: (
        "the GPU's system processor failed: reset the GPU (`nvidia-smi -r`), or reboot, and update"
        " the driver if that comes again"
    ),
}


class SmiError(Exception):
    """nvidia-smi's answer describes no GPU; the message says why, in one line."""


@dataclass(frozen=True)
class Smi:
    """One answer of nvidia-smi."""

    driver: str
    cuda: str | None
    gpus: list[dict[str, Any]]
    processes: list[dict[str, Any]]
    # How many GPUs the driver has.
    attached: int | None
    # Whether parts of the answer could not be read.
    damaged: bool
    # Fields with a value that they cannot have.
    strange: list[str]
    # What was printed beside the description.
    around: str


@dataclass(frozen=True)
class Use:
    """What the GPUs are to be used for: the tensor parallel size, CUDA_VISIBLE_DEVICES, and the
    CUDA of the image where it is known.
    """

    tp: int = 1
    visible: str | None = None
    image_cuda: str | None = None
    # The image's NVIDIA_REQUIRE_CUDA: which drivers its own compatibility libraries make do with.
    image_requires: str = ""
    # Whether a host whose conditions make it slow is refused.
    refuse_slow: bool = False


def ask(tool: str, run: Runner) -> tuple[Smi, list[str]]:
    """What nvidia-smi says, with warnings of its own. Raises SmiError."""
    code, output, error = run([tool, "-q", "-x"])
    try:
        smi = parse(output)
    except SmiError:
        if code:
            raise SmiError(smi_refusal(code, output, error)) from None
        raise
    return smi, list(_doubts(smi, code, one_line(error, 200)))


def smi_refusal(code: int, output: str, error: str) -> str:
    """nvidia-smi's words for a failure, with the remedy where it is known."""
    words = one_line(error, 200) or one_line(output, 200) or f"it ended with exit code {code}"
    known = next((number for phrase, number in _SMI_WORDS if phrase in words), code)
    return f"{words}: {_SMI_REMEDIES[known]}" if known in _SMI_REMEDIES else words


def names(smi: Smi, tool: str, run: Runner) -> list[str]:
    """The GPUs' names; nvidia-smi is asked for them again where its description lacks some."""
    described = [gpu["name"] for gpu in smi.gpus]
    if smi.damaged and (_UNKNOWN in described or (smi.attached or 0) > len(described)):
        code, output, _ignored = run([tool, "--query-gpu=name", "--format=csv,noheader"])
        return names_of(code, output) or described
    return described


def names_of(code: int, output: str) -> list[str]:
    """The GPUs that `nvidia-smi --query-gpu=name` names; none where it failed."""
    names = [one_line(line) for line in output.splitlines() if line.strip()]
    # "No devices were found" goes to standard output, with exit code 0 in some releases.
    failed = any(phrase in name for name in names for phrase, _ignored in _SMI_WORDS)
    return [] if failed or code not in (0, _CORRUPT_INFOROM) else names


def _doubts(smi: Smi, code: int, error: str) -> Iterator[str]:
    """What keeps a description from being taken for the whole."""
    if code == _CORRUPT_INFOROM:
        yield (
            "nvidia-smi says that the infoROM of a GPU is corrupt: `nvidia-smi -q` shows which;"
            " have that GPU looked at"
        )
    elif code:
        words = smi_refusal(code, smi.around, error)
        yield f"nvidia-smi describes GPUs and fails all the same ({words})"
    elif _LEFT_OUT in smi.around:
        yield (
            f"nvidia-smi leaves out a GPU ({one_line(smi.around, 200)}): `dmesg | grep NVRM` says"
            " why; reboot the host, and have that GPU looked at if it stays so"
        )
    if smi.attached is not None and smi.attached > len(smi.gpus):
        yield (
            f"the driver has {smi.attached} GPUs and nvidia-smi describes {len(smi.gpus)}: look at"
            " `nvidia-smi -L`; the others were not checked"
        )
    if smi.strange:
        yield (
            f"nvidia-smi reports values that are unknown here, {', '.join(smi.strange[:4])}: they"
            " were not checked; look at `nvidia-smi -q`"
        )
    if smi.damaged:
        yield (
            "what nvidia-smi prints of the GPUs is damaged: what could not be read counts as"
            " unknown, and was not checked; look at `nvidia-smi -q`"
        )


def parse(answer: str) -> Smi:
    """What the XML of `nvidia-smi -q -x` says. Raises SmiError where it describes no GPU."""
    if len(answer) > _MAX_ANSWER:
        raise SmiError(
            f"it prints {len(answer)} characters, more than any description of GPUs takes"
        )
    log = Log(answer)
    parts = log.gpus[:_MAX_GPUS]
    if not parts or (log.damaged and all(part.empty for part in parts)):
        raise SmiError(f"it describes no GPU, but prints {one_line(answer, 200) or 'nothing'!r}")
    processes = [process for index, part in enumerate(parts) for process in _processes(part, index)]
    head = log.head
    # Newer drivers have both names of each version, and are to drop the first.
    cuda = _version(head.text("cuda_version")) or _version(head.text("cuda_umd_version"))
    return Smi(
        driver=head.text("driver_version") or head.text("kmd_version") or "unknown",
        cuda=".".join(map(str, cuda)) if cuda else None,
        gpus=[_gpu(part, index) for index, part in enumerate(parts)],
        processes=processes[:_MAX_PROCESSES],
        attached=number(head.text("attached_gpus")),
        damaged=log.damaged or any(map(_garbled, parts)),
        strange=[*_strange_versions(head), *_strange_values(parts)],
        around=log.around,
    )


def _garbled(part: Part) -> bool:
    return any(part.text(name).strip("[]") not in NO_VALUE for name in _GROUPS)


def _strange_versions(head: Part) -> Iterator[str]:
    for path in ("cuda_version", "cuda_umd_version"):
        text = head.text(path)
        if text not in NO_VALUE and _version(text) is None:
            yield f"CUDA version {one_line(text, 40)}"


def _strange_values(parts: list[Part]) -> Iterator[str]:
    for index, part in enumerate(parts):
        for path, (name, values) in _VALUES.items():
            text = part.text(path).strip("[]")
            if text not in (*NO_VALUE, *values):
                yield f"{name} {one_line(text, 40)} of GPU {index}"


def _gpu(part: Part, index: int) -> dict[str, Any]:
    """A GPU as nvidia-smi describes it; what it does not report is None, or empty."""
    # Drivers before 530 say power_readings.
    readings, before, link = "gpu_power_readings", "power_readings", "pci_gpu_link_info"
    return {
        "index": index,
        "name": part.text("product_name") or _UNKNOWN,
        "uuid": part.text("uuid"),
        "bus": (part.id or part.text("pci_bus_id")).lower(),
        "memory_mib": number(part.text("fb_memory_usage/total")),
        "lost": _says_anywhere(part, "GPU is lost"),
        "persistence": _enabled(part.text("persistence_mode")),
        "mig": _enabled(part.text("current_mig")),
        # What it will be after the next reset.
        "pending_mig": _enabled(part.text("pending_mig")),
        "compute_mode": part.text("compute_mode"),
        # Of a GPU behind NVSwitches: how far it has joined their fabric, and what kept it out.
        "fabric_state": part.text("fabric/state"),
        "fabric_status": part.text("fabric/status"),
        # Of a vGPU; None on any other GPU.
        "licensed": _licensed(part),
        "ecc": _enabled(part.text("current_ecc")),
        # Since the driver was loaded, or the GPU reset.
        "uncorrectable": _uncorrectable(part),
        "wants_reset": list(_reasons_to_reset(part)),
        "broken": list(_damages(part)),
        "slowdown": [name for name in _SLOWDOWNS if _is_active(part, name)],
        "coherent": part.text("addressing_mode") == "ATS",
        # In watts.
        "power_limit": number(
            part.text(f"{readings}/current_power_limit") or part.text(f"{before}/power_limit")
        ),
        "default_power_limit": number(
            part.text(f"{readings}/default_power_limit")
            or part.text(f"{before}/default_power_limit")
        ),
        # Application clocks, in MHz: drivers from 580 on have deprecated them.
        "clock": number(part.text("applications_clocks/graphics_clock")),
        "default_clock": number(part.text("default_applications_clocks/graphics_clock")),
        "idle": _is_active(part, "gpu_idle"),
        # Of its PCIe link: lanes and generation, and the most that both of its ends can.
        "lanes": number(part.text(f"{link}/link_widths/current_link_width")),
        "most_lanes": number(part.text(f"{link}/link_widths/max_link_width")),
        "generation": number(part.text(f"{link}/pcie_gen/current_link_gen")),
        "newest_generation": number(part.text(f"{link}/pcie_gen/max_link_gen")),
    }


def _is_active(part: Part, reason: str) -> bool:
    """Whether the clocks have this reason now; driver 535 and older call it a throttle reason."""
    return "Active" in (
        part.text(f"clocks_event_reason_{reason}"),
        part.text(f"clocks_throttle_reason_{reason}"),
    )


def _says_anywhere(part: Part, words: str) -> bool:
    """Whether a field holds NVML's words for an error in place of its value."""
    return any(
        text.strip().strip("[]") == words
        for path, text in part.texts()
        if not path.endswith("/process_name")
    )


def _licensed(part: Part) -> bool | None:
    if part.text("virtualization_mode").upper() != "VGPU":
        return None
    status = part.text("license_status").partition(" ")[0]
    return {"Licensed": True, "Unlicensed": False}.get(status)


def _reasons_to_reset(part: Part) -> Iterator[str]:
    for words, tags in (
        ("a row remap is pending", ("remapped_row_pending",)),
        ("a page retirement is pending", ("pending_retirement", "pending_blacklist")),
        ("a repair is pending", ("channel_repair_pending", "tpc_repair_pending")),
        ("a reset is required", ("reset_required",)),
    ):
        if any(_yes(part, tag) for tag in tags):
            yield words
    if _says_anywhere(part, "GPU requires reset"):
        yield "the GPU requires it"
    action = part.text("gpu_recovery_action")
    if any(word in action.lower() for word in ("reset", "reboot", "drain")):
        yield f"the driver asks for {action!r}"


def _damages(part: Part) -> Iterator[str]:
    for words, tag in (
        ("a row remap failed", "remapped_row_failure"),
        ("memory is beyond repair", "unrepairable_memory"),
        ("errors of its SRAM are over the threshold", "sram_threshold_exceeded"),
    ):
        if _yes(part, tag):
            yield words


def _yes(part: Part, path: str) -> bool:
    return part.text(path).lower() == "yes"


def _uncorrectable(part: Part) -> int:
    """The uncorrectable ECC errors since the driver was loaded."""
    counts = [
        text
        for path, text in part.texts()
        if "/volatile/" in path and "/aggregate/" not in path and "uncorrectable" in path
    ]
    # GPUs before Turing.
    counts.append(part.text("volatile/double_bit/total"))
    return sum(number(count) or 0 for count in counts)


def _processes(part: Part, index: int) -> Iterator[dict[str, Any]]:
    """What computes on it; `name` is the program without its arguments, which may hold secrets."""
    for entry in list(part.parts("process_info"))[:_MAX_PROCESSES]:
        pid = number(entry.text("pid"))
        # What only draws (type G), such as a display server, takes no part.
        if not pid or pid >= 2**31 or entry.text("type") == "G":
            continue
        name = entry.text("process_name")
        # A name in brackets says why there is none.
        name = name if name.startswith("[") else name.partition(" ")[0]
        yield {
            "gpu": index,
            "pid": pid,
            "name": name or "unknown",
            "memory_mib": number(entry.text("used_memory")),
        }


def _enabled(text: str) -> bool | None:
    return {"enabled": True, "disabled": False}.get(text.lower())


def _version(text: str) -> tuple[int, int] | None:
    """Major and minor version."""
    found = re.match(r"(\d{1,4})(?:\.(\d{1,4}))?(?![0-9])", text.strip(), re.ASCII)
    return (int(found[1]), int(found[2] or 0)) if found else None


def describe(
    smi: Smi, run: Runner, container_id: str | None = None, root: str = "/"
) -> dict[str, Any]:
    """All that is known of the GPUs' health, as sgl_host_info returns it. `root` is where /dev,
    /proc and /sys are.
    """
    log = _kernel_log(run, root)
    grace = platform.machine() == "aarch64" and any(
        gpu["coherent"] or re.search(r"\bG[HB][23]00\b", gpu["name"]) for gpu in smi.gpus
    )
    processes = [
        {**process, "own": _is_of(process["pid"], container_id, root)}
        for process in smi.processes
        if _is_there(process["pid"], root)
    ]
    return {
        "driver": smi.driver,
        "cuda": smi.cuda,
        "gpus": smi.gpus,
        "processes": processes,
        "xid": None if log is None else _xids(log, smi.gpus),
        "grace": _grace(root) if grace else None,
        "governors": governors(root),
    }


def governors(root: str) -> list[str]:
    """How the CPUs' clocks are chosen; none where the kernel does not say, as in many VMs."""
    folder = os.path.join(root, "sys/devices/system/cpu/cpufreq")
    try:
        policies = sorted(os.listdir(folder))[:_MAX_POLICIES]
    except OSError:
        return []
    found = {one_line(_read(folder, policy, "scaling_governor"), 40) for policy in policies}
    return sorted(found - {""})


def _is_there(pid: int, root: str) -> bool:
    """Whether the process still runs; one that cannot be seen (hidepid) may."""
    if os.path.exists(os.path.join(root, "proc", str(pid))):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _is_of(pid: int, container_id: str | None, root: str) -> bool:
    """Whether the process is the container's: its control group on the host has the container's id
    in its name.
    """
    return bool(container_id) and str(container_id) in _read(root, "proc", str(pid), "cgroup")


def _read(*path: str) -> str:
    """A small file's text without space around it; empty where it cannot be read."""
    try:
        with open(os.path.join(*path), "rb", opener=records.without_blocking) as stream:
            return stream.read(_MAX_FILE).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _kernel_log(run: Runner, root: str) -> str | None:
    """The kernel's messages of this boot, as far as they are kept; None where this user may not
    read them.
    """
    text = _kernel_buffer(os.path.join(root, "dev", "kmsg"))
    if text is not None:
        return text
    tool = shutil.which("journalctl")
    if tool is None:
        return None
    code, output, error = run(
        [tool, "-k", "--no-pager", "-o", "cat", "-n", "2000", "--grep", "NVRM: Xid"]
    )
    if any(words in error for words in _JOURNAL_CLOSED):
        return None
    # Code 1 is also that of no match.
    return output if code == 0 or output.strip() == "-- No entries --" else None


def _kernel_buffer(path: str) -> str | None:
    parts: list[bytes] = []
    size = 0
    try:
        with open(path, "rb", buffering=0, opener=records.without_blocking) as stream:
            for _ignored in range(_MAX_RECORDS):
                try:
                    # One message; None after the last one, where a read would wait.
                    part = stream.read(65536) or b""
                except BrokenPipeError:
                    # The next message was overwritten meanwhile; the one after it comes next.
                    continue
                size += len(part)
                if not part or size > _MAX_LOG:
                    break
                parts.append(part)
    except OSError:
        return None
    return b"".join(parts).decode("utf-8", "replace")


def _xids(log: str, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each kind of Xid error with how often and where it was seen."""
    seen: dict[int, tuple[int, set[str]]] = {}
    for found in _XID.finditer(log):
        count, places = seen.setdefault(int(found[2]), (0, set()))
        places.add(_place(found[1], gpus))
        seen[int(found[2])] = (count + 1, places)
    return [
        {"code": code, "count": count, "where": sorted(places)}
        for code, (count, places) in sorted(seen.items())
    ]


def _place(bus: str, gpus: list[dict[str, Any]]) -> str:
    """`GPU <index>` by its address, which the kernel writes with a shorter domain and without the
    function.
    """

    def short(address: str) -> str:
        return address.lower().partition(".")[0].lstrip("0:")

    return next(
        (f"GPU {gpu['index']}" for gpu in gpus if gpu["bus"] and short(gpu["bus"]) == short(bus)),
        f"the device at {bus}",
    )


def _grace(root: str) -> dict[str, Any]:
    balancing = _read(root, "proc/sys/kernel/numa_balancing")
    huge = re.search(r"\[(\w+)\]", _read(root, "sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "numa_balancing": balancing != "0" if balancing else None,
        "init_on_alloc": _init_on_alloc(root),
        "transparent_hugepages": huge[1] if huge else None,
    }


def _init_on_alloc(root: str) -> bool | None:
    """Whether the kernel fills memory with zeros when it gives it out: by its command line, or else
    as it was built.
    """
    given = re.findall(r"(?:^|\s)init_on_alloc=(\S+)", _read(root, "proc/cmdline"))
    if given:
        return given[-1].lower() not in ("0", "n", "no", "off")
    built = _read(root, f"boot/config-{platform.release()}")
    return "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y" in built if built else None


def judge(health: dict[str, Any], use: Use) -> Verdict:
    """What stands in the way of using the GPUs, and what to look at."""
    verdict = Verdict()
    gpus = _visible(health["gpus"], use.visible, verdict)
    if lost := [gpu for gpu in gpus if gpu["lost"]]:
        verdict.problems.append(
            f"{_which(lost)} lost to the driver: reboot the host, and have the hardware checked if"
            " it is lost again"
        )
    _judge_modes(gpus, verdict)
    _judge_fabric(gpus, use, verdict)
    _judge_kinds(gpus, use, verdict)
    _judge_cuda(health, use, verdict)
    verdict.warnings.extend(_conditions(gpus))
    slow = verdict.problems if use.refuse_slow else verdict.warnings
    slow.extend(_slow_now(gpus))
    slow.extend(_slow_settings(gpus))
    slow.extend(_slow_links(gpus))
    slow.extend(_slow_governors(health["governors"]))
    slow.extend(_strangers(health["processes"], gpus))
    for xid in health["xid"] or []:
        times = "once" if xid["count"] == 1 else f"{xid['count']} times"
        meaning = _XIDS.get(
            xid["code"],
            "NVIDIA's Xid catalog says what that is; `dmesg | grep Xid` shows the whole message",
        )
        verdict.warnings.append(
            f"Xid {xid['code']} since the host was started, {times}, on {', '.join(xid['where'])}:"
            f" {meaning}"
        )
    if health["grace"]:
        verdict.warnings.extend(_grace_advice(health["grace"]))
    return verdict


def _judge_modes(gpus: list[dict[str, Any]], verdict: Verdict) -> None:
    """Modes that an administrator has set, or has set for after the next reset."""
    partitioned = [gpu for gpu in gpus if gpu["mig"]]
    if whole := [gpu for gpu in partitioned if gpu["pending_mig"] is not False]:
        verdict.problems.append(
            f"{_which(whole)} in MIG mode, but a server needs whole ones: end what uses them,"
            f" and turn it off (`{_for_each(whole, '-mig 0')}` as root)"
        )
    if waiting := [gpu for gpu in partitioned if gpu["pending_mig"] is False]:
        verdict.problems.append(
            f"{_which(waiting)} in MIG mode until the next reset: end what uses them, and reset"
            f" them (`{_for_each(waiting, '-r')}` as root), or reboot"
        )
    if coming := [gpu for gpu in gpus if gpu["mig"] is False and gpu["pending_mig"]]:
        verdict.warnings.append(
            f"{_which(coming)} in MIG mode after the next reset or reboot, when no server runs on"
            f" them any more: `{_for_each(coming, '-mig 0')}` as root takes that back"
        )
    if closed := [gpu for gpu in gpus if gpu["compute_mode"] == "Prohibited"]:
        verdict.problems.append(
            f"{_which(closed)} in compute mode Prohibited, in which nothing can compute on them:"
            f" `{_for_each(closed, '-c 0')}` as root"
        )
    if single := [gpu for gpu in gpus if gpu["compute_mode"].startswith("Exclusive")]:
        verdict.warnings.append(
            f"{_which(single)} in compute mode {single[0]['compute_mode']}, in which a second"
            " process on one fails, such as a compiler's beside the server:"
            f" `{_for_each(single, '-c 0')}` as root"
        )
    if unlicensed := [gpu for gpu in gpus if gpu["licensed"] is False]:
        verdict.warnings.append(
            f"{_which(unlicensed)} without a vGPU license, and the driver slows them down and may"
            " refuse CUDA: put the client configuration token into /etc/nvidia/ClientConfigToken,"
            " and `systemctl restart nvidia-gridd`"
        )


def _for_each(gpus: Iterable[dict[str, Any]], flags: str) -> str:
    return " && ".join(f"nvidia-smi -i {gpu['index']} {flags}" for gpu in gpus)


def _judge_fabric(gpus: list[dict[str, Any]], use: Use, verdict: Verdict) -> None:
    """GPUs behind NVSwitches compute only once the fabric manager has let them in."""
    manager = "`systemctl status nvidia-fabricmanager`; it must be of the driver's version"
    if outside := [gpu for gpu in gpus if gpu["fabric_state"] in _FABRIC_UNREADY]:
        verdict.problems.append(
            f"{_which(outside)} not in the NVLink fabric (state {outside[0]['fabric_state']}), and"
            " CUDA fails with error 802 until they are: wait for the fabric manager, or start it"
            f" ({manager})"
        )
    failed = [
        gpu
        for gpu in gpus
        if gpu["fabric_state"] == "Completed" and gpu["fabric_status"] not in ("", "N/A", "Success")
    ]
    if failed:
        message = (
            f"{_which(failed)} refused by the NVLink fabric ({failed[0]['fabric_status']}): look at"
            f" the fabric manager ({manager}), and reset the GPUs (`nvidia-smi -r` as root)"
        )
        (verdict.problems if use.tp > 1 else verdict.warnings).append(message)


def _which(gpus: Iterable[dict[str, Any]]) -> str:
    """Subject and verb of a sentence about GPUs."""
    numbers = [str(gpu["index"]) for gpu in gpus]
    return f"GPU {numbers[0]} is" if len(numbers) == 1 else f"GPUs {', '.join(numbers)} are"


def _visible(
    gpus: list[dict[str, Any]], given: str | None, verdict: Verdict
) -> list[dict[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by index or by the start of their UUID; all where
    it names none.
    """
    words = [word.strip() for word in (given or "").split(",") if word.strip()]
    if not words:
        return gpus
    found = [
        gpu
        for gpu in gpus
        if any(
            word == str(gpu["index"]) or (len(word) > 4 and gpu["uuid"].startswith(word))
            for word in words
        )
    ]
    if not found:
        verdict.warnings.append(
            f"CUDA_VISIBLE_DEVICES is {one_line(given or '')}, and no GPU here is that: take one of"
            " `nvidia-smi -L`"
        )
    return found or gpus


def _judge_kinds(gpus: list[dict[str, Any]], use: Use, verdict: Verdict) -> None:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for gpu in gpus:
        kinds.setdefault(gpu["name"], []).append(gpu)
    if len(kinds) < 2:
        return
    named = ", ".join(
        f"{name} ({', '.join(str(gpu['index']) for gpu in some)})"
        for name, some in list(kinds.items())[:8]
    )
    # More would fill the screen; who has more gets the idea.
    most = max(kinds.values(), key=len)[:8]
    advice = (
        "give each container one kind, with sgl_server_env: {CUDA_VISIBLE_DEVICES: '"
        + ",".join(gpu["uuid"] for gpu in most)
        + "'} for one"
    )
    if use.tp > 1:
        verdict.problems.append(
            f"the GPUs here are of different kinds, {named}, and tp {use.tp} needs {use.tp} of one"
            f" kind: {advice}"
        )
    else:
        verdict.warnings.append(
            f"the GPUs here are of different kinds, {named}, and kernels are tuned for one of them"
            f" alone: {advice}"
        )


def _judge_cuda(health: dict[str, Any], use: Use, verdict: Verdict) -> None:
    wanted, supported = _version(use.image_cuda or ""), _version(health["cuda"] or "")
    if wanted is None or supported is None or supported >= wanted:
        return
    image = "CUDA {}.{}".format(*wanted)
    driver = f"driver {health['driver']} supports CUDA {health['cuda']}"
    if supported[0] == wanted[0]:
        verdict.warnings.append(
            f"{driver}, and the image has {image}: programs made for it run, but the driver cannot"
            " compile its PTX; update the driver if a kernel does not load"
        )
    elif _makes_do(use.image_requires, health["driver"]):
        verdict.warnings.append(
            f"{driver}, and the image has {image}, whose compatibility libraries make do with it:"
            " update the driver if CUDA fails to start"
        )
    else:
        first = (
            f"{_FIRST_DRIVER[wanted[0]]} or later"
            if wanted[0] in _FIRST_DRIVER
            else f"one that supports CUDA {wanted[0]}"
        )
        verdict.problems.append(
            f"{driver}, too old for the image, which has {image}: install a newer driver ({first}),"
            f" or take an image of CUDA {supported[0]}{_LAST_IMAGE.get(supported[0], '')}"
        )


def _makes_do(requires: str, driver: str) -> bool:
    """Whether one of an image's requirements, which are alternatives, takes drivers of this
    branch.
    """
    branch = _version(driver)
    if branch is None:
        return False
    for alternative in requires[:_MAX_FILE].split():
        least = re.search(r"(?:^|,)driver>=(\d{1,5})\b", alternative, re.ASCII)
        below = re.search(r"(?:^|,)driver<(\d{1,5})\b", alternative, re.ASCII)
        if least and below and int(least[1]) <= branch[0] < int(below[1]):
            return True
    return False


def _conditions(gpus: list[dict[str, Any]]) -> Iterator[str]:
    for gpu in gpus:
        name = f"GPU {gpu['index']}"
        if gpu["broken"]:
            yield f"{name} is damaged, {', '.join(gpu['broken'])}: replace it"
        if gpu["wants_reset"]:
            reset = f"nvidia-smi -r -i {gpu['index']}"
            yield (
                f"{name} must be reset, {', '.join(gpu['wants_reset'])}: end what uses it and"
                f" reset it (`{reset}` as root), or reboot"
            )
        if gpu["uncorrectable"]:
            yield (
                f"{name} had {gpu['uncorrectable']} uncorrectable ECC errors since the driver was"
                f" loaded: reset it when it is idle (`nvidia-smi -r -i {gpu['index']}` as root),"
                " and replace it if they return"
            )


def _slow_now(gpus: list[dict[str, Any]]) -> Iterator[str]:
    for gpu in gpus:
        if gpu["slowdown"]:
            name = f"GPU {gpu['index']}"
            cause = (
                "power" if gpu["slowdown"] == ["hw_power_brake_slowdown"] else "cooling and power"
            )
            yield (
                f"{name} is slowed down now ({', '.join(gpu['slowdown'])}), so"
                f" measurements are too slow: check its {cause}"
            )
    if off := [gpu for gpu in gpus if gpu["persistence"] is False]:
        yield (
            f"{_which(off)} not in persistence mode, so the driver loads again at each first use:"
            f" {_persistence_remedy(off)}"
        )


def _slow_settings(gpus: list[dict[str, Any]]) -> Iterator[str]:
    """What an administrator has set."""
    limited = [gpu for gpu in gpus if _is_below(gpu["power_limit"], gpu["default_power_limit"])]
    if limited:
        first = limited[0]
        remedy = _for_each(limited, f"-pl {first['default_power_limit']}")
        yield (
            f"{_which(limited)} limited to {first['power_limit']} W, below the default of"
            f" {first['default_power_limit']} W, and so slower than others:"
            f" `{remedy}` as root"
        )
    if clocked := [gpu for gpu in gpus if _is_below(gpu["clock"], gpu["default_clock"])]:
        first = clocked[0]
        yield (
            f"{_which(clocked)} held to application clocks of {first['clock']} MHz, below the"
            f" default of {first['default_clock']} MHz, and so slower than others:"
            f" `{_for_each(clocked, '-rac')}` as root"
        )
    if without := [gpu for gpu in gpus if gpu["ecc"] is False]:
        yield (
            f"{_which(without)} without ECC, so that an error in memory goes unseen and others of"
            f" its kind are not comparable: `{_for_each(without, '-e 1')}` as root, then reboot"
        )


def _is_below(value: int | None, least: int | None) -> bool:
    """Whether a value that is known is below one that is known."""
    return value is not None and least is not None and value < least


def _slow_links(gpus: list[dict[str, Any]]) -> Iterator[str]:
    """PCIe links that were not trained to what both ends can. Links of idle GPUs fall back to an
    older generation by themselves, and a coherent GPU has another link to its CPU.
    """
    for gpu in gpus:
        if gpu["coherent"]:
            continue
        name = f"GPU {gpu['index']}"
        remedy = "have its slot, riser and BIOS settings checked"
        if _is_below(gpu["lanes"], gpu["most_lanes"]):
            yield (
                f"{name} has {gpu['lanes']} of {gpu['most_lanes']} PCIe lanes, so that copies from"
                f" the host are slow: {remedy}"
            )
        if _is_below(gpu["generation"], gpu["newest_generation"]) and not gpu["idle"]:
            yield (
                f"{name}'s PCIe link is of generation {gpu['generation']} under load, and could be"
                f" of {gpu['newest_generation']}: {remedy}"
            )


def _slow_governors(governors: list[str]) -> Iterator[str]:
    if others := [name for name in governors if name != "performance"]:
        yield (
            f"the CPUs' clocks are chosen by the governor {', '.join(others[:4])}, which answers"
            " late to bursts of a server's work: `cpupower frequency-set -g performance` as root"
        )


def _persistence_remedy(off: list[dict[str, Any]]) -> str:
    now = "`nvidia-smi -pm 1` until the next boot"
    if any(gpu["coherent"] for gpu in off):
        # Its own user may not open auto_online_blocks (NVIDIA/nvidia-persistenced#11).
        return f"{now}; nvidia-persistenced fails on Grace unless its unit runs it without --user"
    return f"`systemctl enable --now nvidia-persistenced`, or {now}"


def _strangers(processes: list[dict[str, Any]], gpus: list[dict[str, Any]]) -> Iterator[str]:
    indexes = {gpu["index"] for gpu in gpus}
    for process in processes:
        if not process["own"] and process["gpu"] in indexes:
            memory = (
                "an unknown amount"
                if process["memory_mib"] is None
                else f"{process['memory_mib']} MiB"
            )
            yield (
                f"GPU {process['gpu']} is in use by another process, pid {process['pid']}"
                f" ({process['name']}), which holds {memory} of its memory: end it before stages"
                " that need the GPU, which fail with gpu_busy otherwise"
            )


def _grace_advice(grace: dict[str, Any]) -> Iterator[str]:
    if grace["page_size"] != 65536:
        yield (
            f"this Grace host's kernel has pages of {grace['page_size'] // 1024} KiB, and NVIDIA"
            " advises 64 KiB: boot a 64k kernel (linux-nvidia-64k or linux-generic-64k on Ubuntu);"
            " programs of the host whose jemalloc was built for pages of 4 KiB do not start there"
        )
    elif grace["transparent_hugepages"] == "always":
        yield (
            "transparent huge pages are always on, and with 64 KiB pages each is 512 MiB: "
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` as root, "
            "and transparent_hugepage=madvise on the kernel's command line"
        )
    if grace["numa_balancing"]:
        yield (
            "automatic NUMA balancing is on, which unmaps pages that the GPU works on: `sysctl -w"
            " kernel.numa_balancing=0`, and numa_balancing=disable on the kernel's command line"
        )
    if grace["init_on_alloc"]:
        yield (
            "the kernel fills memory with zeros when it gives it out, which makes large allocations"
            " slow: NVIDIA advises init_on_alloc=0 on the kernel's command line of a Grace host"
        )


def toolkit_problem(docker: DockerCli, root: str = "/") -> str | None:
    """What to install where Docker cannot give GPUs to a container; None where it can, or where
    Docker does not say.
    """
    hooks = ("nvidia-container-runtime-hook", "nvidia-container-toolkit")
    # Docker is asked last, as it answers slowest.
    if any(
        shutil.which(hook) or os.path.exists(os.path.join(root, "usr/bin", hook)) for hook in hooks
    ):
        return None
    if gpu_access.has_cdi_spec(root):
        return None
    info = docker.info()
    runtimes, devices = info.get("Runtimes"), info.get("DiscoveredDevices")
    if not isinstance(runtimes, dict):
        return None
    # Docker 29 lists the CDI devices that it has found.
    listed = devices if isinstance(devices, list) else ()
    known = (*runtimes, *(str(each.get("ID")) for each in listed if isinstance(each, dict)))
    if any(name.startswith("nvidia") for name in known):
        return None
    return (
        "Docker cannot give this host's GPUs to a container without the NVIDIA container toolkit:"
        " install nvidia-container-toolkit from NVIDIA's package repository, then `nvidia-ctk"
        " runtime configure --runtime=docker` and `systemctl restart docker`"
    )


def image_cuda(inspected: dict[str, Any]) -> tuple[str | None, str]:
    """CUDA_VERSION and NVIDIA_REQUIRE_CUDA of an image, as `docker image inspect` tells its
    environment.
    """
    config = inspected.get("Config")
    lines = config.get("Env") if isinstance(config, dict) else None
    listed = lines if isinstance(lines, list) else ()
    env = dict(line.split("=", 1) for line in listed if isinstance(line, str) and "=" in line)
    return env.get("CUDA_VERSION"), env.get("NVIDIA_REQUIRE_CUDA", "")
