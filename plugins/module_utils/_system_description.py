# Copyright: (c) 2026, slice_bench.sglang contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host as MLPerf Inference's submissions describe a system, as far as it can be read without
root.

The fields are those that the submission checker demands: SYSTEM_DESC_REQUIRED_FIELDS of
mlcommons/inference, tools/submission/submission_checker/constants.py (commit b66003e, August 2026).
Their values are texts, as in the samples beside it (directory_structure_samples/sample_1), where
"N/A" stands for what a system does not have. SYSTEM_DESC_MEANINGFUL_RESPONSE_REQUIRED_FIELDS may
not be empty; what of them no host can say of itself is the operator's to fill in.

Grace names itself by its SoC id: NVIDIA/DCGM reads the same file (CpuHelpers), because its
/proc/cpuinfo says no more than a Neoverse V2, which other makers' CPUs have too. On a GH200 the
GPU's memory is a NUMA node without CPUs, and MemTotal of /proc/meminfo counts it: issue 129 of
bytedance/xpu-perf shows nine nodes, of which one has CPUs.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from . import _gpu_health as gpu_health
from ._contract.texts import one_line
from ._docker_cli import Runner
from ._smi_xml import NO_VALUE, Log, Part, number

# Those that the checker demands, in its order.
REQUIRED = (
    "division",
    "submitter",
    "status",
    "system_name",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_storage_capacity",
    "host_storage_type",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "framework",
    "operating_system",
    "system_type",
    "other_software_stack",
    "host_processor_frequency",
    "host_processor_caches",
    "host_memory_configuration",
    "host_processor_interconnect",
    "host_networking",
    "host_networking_topology",
    "accelerator_frequency",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "accelerator_memory_configuration",
    "accelerator_on-chip_memories",
    "cooling",
    "hw_notes",
    "sw_notes",
    "host_network_card_count",
    "system_type_detail",
)
# Those of them that it accepts empty.
_MAY_BE_EMPTY = (
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "accelerator_frequency",
    "accelerator_interconnect_topology",
    "accelerator_on-chip_memories",
    "hw_notes",
    "sw_notes",
    "system_type_detail",
)
NOT_THERE = "N/A"
# A field that the samples have too.
_FIRMWARE = "boot_firmware_version"
_MAX_FILE = 2**16
_MAX_LINES = 10_000
_MAX_ENTRIES = 4096
_MAX_ANSWER = 8 * 2**20
_MAX_TEXT = 200
_GRACE_SOC = "036b:0241"
# What a board says whose maker gave it no name.
_NO_NAME = re.compile(
    r"to be filled by o\.?e\.?m\.?|default string|system (manufacturer|product name)|none|n/?a"
    r"|not (specified|applicable)|unknown|o\.?e\.?m\.?|0+",
    re.IGNORECASE,
)
# Memory by the data sheets of the products ("NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor Core
# GPU", "NVIDIA GH200 Grace Hopper Superchip"), where NVML's name does not have it.
_MEMORY = {
    "NVIDIA GH200 480GB": "HBM3",
    "NVIDIA H100 PCIe": "HBM2e",
    "NVIDIA H100 NVL": "HBM3",
    "NVIDIA H200": "HBM3e",
    "NVIDIA H200 NVL": "HBM3e",
}
# Of each GPU, by its path in nvidia-smi's XML.
_GPU = (
    ("name", "product_name"),
    ("vbios", "vbios_version"),
    ("power_limit", "gpu_power_readings/current_power_limit"),
    ("default_power_limit", "gpu_power_readings/default_power_limit"),
    ("ecc", "current_ecc"),
    ("mig", "current_mig"),
    ("persistence", "persistence_mode"),
)
# PCI classes: 3D controllers, processing accelerators.
_ACCELERATOR_CLASSES = ("0x0302", "0x1200")


class Unread(Exception):
    """Something cannot be read; the message names it and says why."""


@dataclass
class _Host:
    run: Runner
    record: dict[str, Any]
    root: str
    log: Log | None = None
    unread: list[str] = field(default_factory=list)

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def read(self, *parts: str) -> str:
        """A small file of the kernel's. Raises Unread."""
        path = self.path(*parts)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
                return stream.read(_MAX_FILE).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            raise Unread(f"{path} cannot be read ({_reason(error)})") from error

    def text(self, *parts: str) -> str:
        """What it says, in one line; empty where it cannot be read."""
        try:
            return one_line(self.read(*parts).replace("\0", " "), _MAX_TEXT)
        except Unread:
            return ""

    def entries(self, *parts: str) -> list[str]:
        """The names in a folder. Raises Unread."""
        path = self.path(*parts)
        try:
            return sorted(os.listdir(path))[:_MAX_ENTRIES]
        except OSError as error:
            raise Unread(f"{path} cannot be read ({_reason(error)})") from error

    def ask(self, *command: str) -> str:
        """What a program prints. Raises Unread."""
        tool = shutil.which(command[0])
        if tool is None:
            raise Unread(f"there is no {command[0]} on the PATH")
        code, output, error = self.run([tool, *command[1:]])
        if code:
            words = one_line(error or output, _MAX_TEXT)
            raise Unread(f"`{' '.join(command)}` ended with exit code {code} ({words})")
        return output[:_MAX_ANSWER]

    @property
    def gpus(self) -> list[Part]:
        return self.log.gpus if self.log is not None else []

    @property
    def is_grace(self) -> bool:
        paths = glob.glob(os.path.join(glob.escape(self.root), "sys/devices/soc*/soc_id"))
        return any(_GRACE_SOC in self.text(path) for path in paths)

    @property
    def is_coherent(self) -> bool:
        """Whether the kernel may count the GPUs' memory as its own."""
        return self.is_grace or any(part.text("addressing_mode") == "ATS" for part in self.gpus)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(error, _MAX_TEXT)


Fields = Iterator[tuple[str, str]]


def describe(run: Runner, record: dict[str, Any], root: str = "/") -> dict[str, Any]:
    """The host and the run that `record` (run_record.summary) tells of, as
    schemas/system.schema.json. What cannot be read is empty, and costs no other field.
    """
    host = _Host(run, record, root)
    answer: dict[str, Any] = {**dict.fromkeys(REQUIRED, ""), _FIRMWARE: "", "number_of_nodes": "1"}
    _take(host, answer, _look_at_gpus)
    for reader in _READERS:
        _take(host, answer, reader)
    about = _object(_object(record.get("prep_result")).get("run"))
    # The checker ignores fields that it does not know.
    answer["schema_version"] = "1"
    answer["slice_bench"] = {
        "described_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "run_id": record.get("run_id"),
        "prep_id": about.get("prep_id"),
        "to_fill_in": [name for name in REQUIRED if not answer[name] and name not in _MAY_BE_EMPTY],
        "unread": host.unread,
        "settings": _settings(host),
    }
    return answer


def _take(host: _Host, answer: dict[str, Any], reader: Callable[[_Host], Fields]) -> None:
    """The fields of one reader, up to the one that cannot be read."""
    try:
        for name, text in reader(host):
            answer[name] = one_line(text)
    except Unread as reason:
        host.unread.append(one_line(reason))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _look_at_gpus(host: _Host) -> Fields:
    """nvidia-smi's description, which several fields are from."""
    if shutil.which("nvidia-smi") is None:
        if any(_accelerators_on_pci(host)):
            raise Unread("an accelerator has no driver, as there is no nvidia-smi on the PATH")
        yield "accelerators_per_node", "0"
        yield from ((name, NOT_THERE) for name in REQUIRED if name.startswith("accelerator_"))
        return
    log = Log(host.ask("nvidia-smi", "-q", "-x"))
    if not log.gpus:
        raise Unread("`nvidia-smi -q -x` describes no GPU")
    host.log = log
    yield "accelerators_per_node", str(len(log.gpus))


def _accelerators_on_pci(host: _Host) -> Iterator[str]:
    if not os.path.lexists(host.path("sys/bus/pci")):
        return
    for device in host.entries("sys/bus/pci/devices"):
        folder = f"sys/bus/pci/devices/{device}"
        kind, vendor = host.text(folder, "class"), host.text(folder, "vendor")
        if kind.startswith(_ACCELERATOR_CLASSES) or (vendor, kind[:4]) == ("0x10de", "0x03"):
            yield device


def _board(host: _Host) -> Fields:
    folder = "sys/class/dmi/id"
    firmware = [host.text(folder, f"bios_{part}") for part in ("vendor", "version", "date")]
    yield _FIRMWARE, " ".join(filter(None, firmware))
    vendor, product = (
        "" if _NO_NAME.fullmatch(text) else text
        for text in (host.text(folder, "sys_vendor"), host.text(folder, "product_name"))
    )
    if product and not product.lower().startswith(vendor.lower()):
        product = f"{vendor} {product}"
    product = product or host.text("proc/device-tree/model")
    if not product:
        raise Unread(f"the board does not say its name in {host.path(folder, 'product_name')}")
    yield "system_name", product


def _lscpu(host: _Host) -> dict[str, str]:
    # Its words are translated, the kernel's are not.
    facts: dict[str, str] = {}
    for line in host.ask("env", "LC_ALL=C", "lscpu").splitlines()[:_MAX_LINES]:
        name, _colon, value = line.partition(":")
        facts.setdefault(one_line(name, _MAX_TEXT), one_line(value, _MAX_TEXT))
    return facts


def _processors(host: _Host) -> Fields:
    facts = _lscpu(host)
    model = facts.get("Model name", "")
    if host.is_grace:
        model = f"NVIDIA Grace ({model})" if model else "NVIDIA Grace"
    yield "host_processor_model_name", model.strip("-")
    frequency = re.match(r"\d{3,6}", facts.get("CPU max MHz", ""), re.ASCII)
    yield "host_processor_frequency", f"{frequency[0]} MHz" if frequency else ""
    levels = ("L1d", "L1i", "L2", "L3")
    caches = {level: facts.get(level) or facts.get(f"{level} cache") for level in levels}
    yield (
        "host_processor_caches",
        ", ".join(f"{level} {size}" for level, size in caches.items() if size),
    )
    sockets = _count(host, facts, "Socket(s)")
    yield "host_processors_per_node", sockets
    # Of one processor, as in the samples: two EPYC 9575F have "64".
    yield "host_processor_core_count", _count(host, facts, "Core(s) per socket")
    yield "host_processor_interconnect", NOT_THERE if sockets == "1" else ""


def _count(host: _Host, facts: dict[str, str], name: str) -> str:
    """Empty where it is unknown: for an Arm CPU without a table of its topology, it is "-"."""
    text = facts.get(name, "")
    if re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        return text
    host.unread.append(f"`lscpu` does not say {name}")
    return ""


def _memory(host: _Host) -> Fields:
    if host.is_coherent:
        files = [f"sys/devices/system/node/node{node}/meminfo" for node in _nodes_with_cpus(host)]
    else:
        files = ["proc/meminfo"]
    total = sum(_mem_total(host, path) for path in files)
    yield "host_memory_capacity", f"{total / 2**20:.1f} GiB"


def _nodes_with_cpus(host: _Host) -> list[int]:
    """Raises Unread."""
    path = "sys/devices/system/node/has_cpu"
    text = host.read(path).strip()
    nodes: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, re.ASCII)
        if ends is None:
            raise Unread(f"{host.path(path)} has no list of nodes, but {one_line(text, 80)!r}")
        nodes += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return nodes


def _mem_total(host: _Host, path: str) -> int:
    """In KiB. Raises Unread."""
    found = re.search(r"MemTotal:\s+(\d{1,15}) kB", host.read(path), re.ASCII)
    if found is None:
        raise Unread(f"{host.path(path)} has no MemTotal")
    return int(found[1])


def _storage(host: _Host) -> Fields:
    """The host's own drives: what is made of others has no device."""
    drives: Counter[tuple[str, int]] = Counter()
    for name in host.entries("sys/block"):
        folder = f"sys/block/{name}"
        sectors = host.text(folder, "size")
        away = "1" in (host.text(folder, "removable"), host.text(folder, "hidden"))
        is_own = os.path.exists(host.path(folder, "device"))
        if is_own and not away and re.fullmatch(r"[1-9]\d{0,17}", sectors, re.ASCII):
            rotates = host.text(folder, "queue", "rotational")
            drives[(_kind_of_drive(name, rotates), int(sectors) * 512)] += 1
    if not drives:
        raise Unread(f"{host.path('sys/block')} has no drive with a size")
    sizes = [f"{count}x {_size(size)}" for (_kind, size), count in sorted(drives.items())]
    yield "host_storage_capacity", ", ".join(sizes)
    yield "host_storage_type", ", ".join(sorted({kind for kind, _size in drives}))


def _kind_of_drive(name: str, rotates: str) -> str:
    if name.startswith("nvme"):
        return "NVMe SSD"
    if name.startswith(("vd", "xvd")):
        return "virtual disk"
    return {"0": "SSD", "1": "HDD"}.get(rotates, "disk")


def _size(count: int) -> str:
    """As drives are sold."""
    return f"{count / 1e12:.2f} TB" if count >= 10**12 else f"{count / 1e9:.0f} GB"


def _network(host: _Host) -> Fields:
    ports: Counter[str] = Counter()
    cards = set()
    for name in host.entries("sys/class/net"):
        device = os.path.realpath(host.path("sys/class/net", name, "device"))
        # Ethernet has type 1. A virtual function is a part of a card; over USB is the BMC.
        is_own = os.path.exists(device) and not os.path.exists(os.path.join(device, "physfn"))
        if is_own and host.text("sys/class/net", name, "type") == "1" and "/usb" not in device:
            ports[_ethernet(host, name, device)] += 1
            cards.add(_card(device))
    for name, port in _infiniband_ports(host):
        folder = f"sys/class/infiniband/{name}/ports/{port}"
        ports[f"InfiniBand {host.text(folder, 'rate')}".strip()] += 1
        cards.add(_card(os.path.realpath(host.path("sys/class/infiniband", name, "device"))))
    if not cards:
        raise Unread(f"{host.path('sys/class/net')} has no network card")
    yield "host_network_card_count", str(len(cards))
    yield "host_networking", ", ".join(f"{count}x {port}" for port, count in sorted(ports.items()))


def _ethernet(host: _Host, name: str, device: str) -> str:
    driver = os.path.basename(os.path.realpath(os.path.join(device, "driver")))
    speed = host.text("sys/class/net", name, "speed")
    # A port without a link, and many a virtual one, has -1 or cannot be read.
    known = re.fullmatch(r"[1-9]\d{0,6}", speed, re.ASCII)
    words = "of unknown speed"
    if known:
        words = f"{int(speed) / 1000:g} Gb/s" if int(speed) >= 1000 else f"{speed} Mb/s"
    return f"Ethernet {words} ({driver})" if driver != "driver" else f"Ethernet {words}"


def _infiniband_ports(host: _Host) -> Iterator[tuple[str, str]]:
    pattern = os.path.join(glob.escape(host.root), "sys/class/infiniband/*/ports/*")
    for path in sorted(glob.glob(pattern))[:_MAX_ENTRIES]:
        name, _ports, port = os.path.relpath(path, host.root).split(os.sep)[-3:]
        # A port of a card for both may be Ethernet, which is counted already.
        if host.text("sys/class/infiniband", name, "ports", port, "link_layer") == "InfiniBand":
            yield name, port


def _card(device: str) -> str:
    """The card of a PCI function."""
    return re.sub(r"\.[0-7]$", "", os.path.basename(device))


def _each(texts: Iterable[str]) -> str:
    """What the GPUs say, once where they agree."""
    return ", ".join(dict.fromkeys(text for text in texts if text.strip("[]") not in NO_VALUE))


def _accelerators(host: _Host) -> Fields:
    if host.log is None:
        return
    parts = host.gpus
    names = _each(part.text("product_name") for part in parts)
    yield "accelerator_model_name", names
    sizes = (number(part.text("fb_memory_usage/total")) for part in parts)
    yield "accelerator_memory_capacity", _each(f"{mib / 1024:.1f} GiB" for mib in sizes if mib)
    named = re.search(r"\bHBM\d\w*", names)
    yield "accelerator_memory_configuration", named[0] if named else _MEMORY.get(names, "")
    clocks = (number(part.text("max_clocks/graphics_clock")) for part in parts)
    yield "accelerator_frequency", _each(f"{clock} MHz" for clock in clocks if clock)
    yield "accelerator_host_interconnect", _each(_host_link(part) for part in parts)
    if len(parts) == 1:
        yield "accelerator_interconnect", NOT_THERE
        yield "accelerator_interconnect_topology", NOT_THERE
        return
    if any(part.text("fabric/state") == "Completed" for part in parts):
        yield "accelerator_interconnect_topology", "NVSwitch"
    yield "accelerator_interconnect", _nvlink(host) or _each(_pcie(part) for part in parts)


def _host_link(part: Part) -> str:
    return "NVLink-C2C" if part.text("addressing_mode") == "ATS" else _pcie(part)


def _pcie(part: Part) -> str:
    """The most that both ends of the link can: it trains down while it is idle."""
    link = "pci_gpu_link_info"
    generation = number(part.text(f"{link}/pcie_gen/max_link_gen"))
    lanes = number(part.text(f"{link}/link_widths/max_link_width"))
    return f"PCIe Gen{generation} x{lanes}" if generation and lanes else ""


def _nvlink(host: _Host) -> str:
    """The active links of each GPU; empty where there is none. Raises Unread."""
    links: list[list[str]] = []
    for line in host.ask("nvidia-smi", "nvlink", "--status").splitlines()[:_MAX_LINES]:
        if re.match(r"\s*GPU \d+:", line):
            links.append([])
        elif links and (found := re.match(r"\s*Link \d+: ([1-9][\d.]* GB/s)\s*$", line)):
            links[-1].append(found[1])
    each = (", ".join(f"{n}x {speed}" for speed, n in Counter(one).items()) for one in links)
    words = _each(each)
    return f"NVLink, {words} for each GPU" if words else ""


def _operating_system(host: _Host) -> Fields:
    kernel = host.text("proc/sys/kernel/osrelease")
    try:
        text = host.read("etc/os-release")
    except Unread:
        text = host.read("usr/lib/os-release")
    names = (line.partition("=") for line in text.splitlines()[:_MAX_LINES])
    values = {name.strip(): _unquoted(value) for name, _equals, value in names}
    name = values.get("PRETTY_NAME") or values.get("NAME")
    if not name:
        raise Unread(f"{host.path('etc/os-release')} has no PRETTY_NAME")
    yield "operating_system", f"{name}, Linux {kernel}" if kernel else name


def _unquoted(value: str) -> str:
    """A value of os-release, which a shell could read."""
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value.strip(" \"'")


def _software(host: _Host) -> Fields:
    """What the run's records say of its own software."""
    manifest = _object(host.record.get("manifest"))
    about = _object(_object(host.record.get("prep_result")).get("run"))
    versions = _object(manifest.get("versions"))
    yield (
        "framework",
        _named(
            ("SGLang", about.get("sglang_version") or versions.get("sglang")),
            ("PyTorch", about.get("torch_version") or versions.get("torch")),
            ("CUDA", about.get("cuda")),
        ),
    )
    driver = about.get("driver_version")
    if host.log is not None:
        head = host.log.head
        driver = head.text("driver_version") or head.text("kmd_version") or driver
    yield (
        "other_software_stack",
        _named(
            ("NVIDIA driver", driver),
            ("Triton", about.get("triton_version")),
            ("FlashInfer", about.get("flashinfer_version")),
            ("DeepGEMM", about.get("deep_gemm_version")),
            ("image", _image(_object(manifest.get("base_image")))),
        ),
    )


def _image(base: dict[str, Any]) -> str:
    return "@".join(str(base[key]) for key in ("name", "digest") if _is_known(base.get(key)))


def _is_known(version: Any) -> bool:
    return isinstance(version, str) and version not in ("", "unknown")


def _named(*versions: tuple[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions if _is_known(version))


def _settings(host: _Host) -> dict[str, Any]:
    """What the form has no field for, and changes how fast a host is; each as it is said."""
    pages = re.search(r"\[(\w+)\]", host.text("sys/kernel/mm/transparent_hugepage/enabled"))
    return {
        "cpu_governors": gpu_health.governors(host.root),
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "transparent_hugepages": pages[1] if pages else "",
        "numa_balancing": host.text("proc/sys/kernel/numa_balancing"),
        "gpus": [{name: part.text(path) for name, path in _GPU} for part in host.gpus],
    }


_READERS: tuple[Callable[[_Host], Fields], ...] = (
    _board,
    _processors,
    _memory,
    _storage,
    _network,
    _accelerators,
    _operating_system,
    _software,
)
