"""Stands for a host that is described: its files below a root folder, and its programs.

What the files say is from real hosts. lscpu of a GH200: archspec/archspec-json issue 83, and
PrincetonUniversity's della-gh with nine NUMA nodes; of two Xeon 8462Y+ with an older lscpu's names
of caches: siderolabs/talos issue 9121; of an A64FX without sockets: libxsmm/libxsmm issue 737.
Grace's SoC id: NVIDIA/DCGM, tests of CpuHelpers. os-release: Ubuntu 24.04.4 and Red Hat Enterprise
Linux 9.4, /etc/os-release of each. Links: `nvidia-smi nvlink -s` in NVIDIA/nccl-tests issue 228,
and with inactive ones Azure/azhpc-diagnostics issue 73.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.doubles.nvidia_smi import Answer, Card, NvidiaSmi

UBUNTU = """PRETTY_NAME="Ubuntu 24.04.4 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.4 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
"""
RED_HAT = """NAME="Red Hat Enterprise Linux"
VERSION="9.4 (Plow)"
ID="rhel"
ID_LIKE="fedora"
VERSION_ID="9.4"
PLATFORM_ID="platform:el9"
PRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow)"
ANSI_COLOR="0;31"
"""
GRACE = """Architecture:           aarch64
  CPU op-mode(s):       64-bit
  Byte Order:           Little Endian
CPU(s):                 72
  On-line CPU(s) list:  0-71
Vendor ID:              ARM
  Model name:           Neoverse-V2
    Model:              0
    Thread(s) per core: 1
    Core(s) per socket: 72
    Socket(s):          1
    Stepping:           r0p0
    Frequency boost:    disabled
    CPU max MHz:        3510.0000
    CPU min MHz:        81.0000
    BogoMIPS:           2000.00
    Flags:              fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics
Caches (sum of all):
  L1d:                  4.5 MiB (72 instances)
  L1i:                  4.5 MiB (72 instances)
  L2:                   72 MiB (72 instances)
  L3:                   114 MiB (1 instance)
NUMA:
  NUMA node(s):         9
  NUMA node0 CPU(s):    0-71
  NUMA node1 CPU(s):
"""
XEON = """Architecture:        x86_64
CPU(s):              112
Vendor ID:           GenuineIntel
Model name:          Intel(R) Xeon(R) Platinum 8462Y+
CPU family:          6
Model:               143
Thread(s) per core:  2
Core(s) per socket:  28
Socket(s):           2
BogoMIPS:            5600.00
L1d cache:           48K
L1i cache:           32K
L2 cache:            2048K
L3 cache:            61440K
"""
A64FX = """Architecture:        aarch64
CPU(s):              48
Thread(s) per core:  1
Core(s) per cluster: 12
Socket(s):           -
Cluster(s):          4
Vendor ID:           FUJITSU
Model name:          A64FX
"""
GH200 = Card(
    name="NVIDIA GH200 480GB",
    bus="00000009:01:00.0",
    memory="97871 MiB",
    addressing="ATS",
    power_limit="900.00 W",
    default_power_limit="900.00 W",
)
H100 = Card(name="NVIDIA H100 80GB HBM3", memory="81559 MiB", links=["26.562 GB/s"] * 18)


@dataclass
class DescribedHost:
    root: Path
    lscpu: Answer = (0, GRACE, "")
    smi: NvidiaSmi = field(default_factory=lambda: NvidiaSmi([GH200]))
    links: Answer | None = None
    ran: list[str] = field(default_factory=list)

    def __call__(self, command: list[str]) -> Answer:
        program, *words = command
        self.ran.append(" ".join([Path(program).name, *words]))
        if words == ["LC_ALL=C", "lscpu"]:
            return self.lscpu
        if words[0] == "nvlink" and self.links is not None:
            return self.links
        return self.smi(command)

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def add_drive(self, name: str, sectors: int, rotates: str = "0", **texts: str) -> None:
        self.write(f"sys/block/{name}/size", f"{sectors}\n")
        self.write(f"sys/block/{name}/queue/rotational", f"{rotates}\n")
        for key, text in {"removable": "0", **texts}.items():
            self.write(f"sys/block/{name}/{key}", f"{text}\n")
        self.write(f"sys/block/{name}/device/uevent", "")

    def add_device(self, kind: str, name: str, function: str, driver: str) -> None:
        """What the kernel lists under sys/class, as a function of a PCI device with a driver."""
        folder = self.root / "sys/devices" / function
        (folder / driver).mkdir(parents=True, exist_ok=True)
        if not (folder / "driver").is_symlink():
            (folder / "driver").symlink_to(driver)
        listed = self.root / "sys/class" / kind / name
        listed.mkdir(parents=True)
        (listed / "device").symlink_to(folder)

    def add_port(
        self, name: str, function: str, speed: str, driver: str = "mlx5_core", kind: str = "1"
    ) -> None:
        """A network interface of a PCI function; type 32 is InfiniBand's."""
        self.add_device("net", name, function, driver)
        self.write(f"sys/class/net/{name}/type", f"{kind}\n")
        self.write(f"sys/class/net/{name}/speed", f"{speed}\n")

    def add_infiniband(self, name: str, function: str, rate: str, layer: str) -> None:
        self.add_device("infiniband", name, function, "mlx5_core")
        self.write(f"sys/class/infiniband/{name}/ports/1/link_layer", f"{layer}\n")
        self.write(f"sys/class/infiniband/{name}/ports/1/rate", f"{rate}\n")

    def make_gh200(self) -> DescribedHost:
        """A GH200 whose GPU's memory is NUMA node 1, and counted by /proc/meminfo."""
        for name, text in {
            "sys_vendor": "Supermicro",
            "product_name": "ARS-111GL-NHR",
            "bios_vendor": "American Megatrends International, LLC.",
            "bios_version": "1.3a",
            "bios_date": "06/14/2025",
        }.items():
            self.write(f"sys/class/dmi/id/{name}", f"{text}\n")
        self.write("sys/devices/soc0/soc_id", "jep106:036b:0241\n")
        self.write("proc/meminfo", "MemTotal:       601898624 kB\nMemFree:        1 kB\n")
        self.write("sys/devices/system/node/has_cpu", "0\n")
        self.write("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:  501932416 kB\n")
        self.write("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  99966208 kB\n")
        self.write("etc/os-release", UBUNTU)
        self.write("proc/sys/kernel/osrelease", "6.8.0-1013-nvidia-64k\n")
        self.write("proc/sys/kernel/numa_balancing", "0\n")
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        self.write("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n")
        self.add_drive("nvme0n1", 7_501_476_528)
        self.add_drive("nvme1n1", 1_875_385_008)
        self.write("sys/block/loop0/size", "8\n")
        self.add_port("enp1s0f0np0", "0000:01:00.0", "200000")
        self.add_port("enp1s0f1np1", "0000:01:00.1", "-1")
        self.add_port("eno1", "0002:01:00.0", "1000", "igb")
        self.write("sys/class/net/docker0/type", "1\n")
        return self
