"""Stands for nvidia-smi on a host with GPUs: the XML of `-q -x` and the CSV of `--query-gpu`, with
the element names of a real driver.

The elements are those of real answers of drivers 535 (throttle reasons), 550 (event reasons), 570
(recovery action, the reset status deprecated), 580 (no reset status, repairs) and 595, without
those that are not read here. What a GPU does not support says N/A. Real answers lie in telegraf's
plugins/inputs/nvidia_smi/testdata. The fabric's states are those of nvmlGpuFabricState_t, as
NVSentinel meets them ("Not Started", "In Progress", "Completed" with status "Success").

FAILURES holds how nvidia-smi ends without describing anything: exit code (nvmlReturn_t), standard
output, standard error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Answer = tuple[int, str, str]
_DEPRECATED = "Requested functionality has been deprecated"
_REASONS = (
    *(
        "gpu_idle",
        "applications_clocks_setting",
        "sw_power_cap",
        "hw_slowdown",
        "hw_thermal_slowdown",
        "hw_power_brake_slowdown",
    ),
    *("sync_boost", "sw_thermal_slowdown", "display_clocks_setting"),
)


FAILURES: dict[str, Answer] = {
    "no module": (
        9,
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure"
        " that the latest NVIDIA driver is installed and running.\n\n",
        "",
    ),
    "an updated driver": (
        18,
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.9\n",
        "",
    ),
    "no library": (
        12,
        "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the"
        " NVIDIA Display Driver is properly installed and present in your system.\nPlease also try"
        " adding directory that contains libnvidia-ml.so to your system PATH.\n",
        "",
    ),
    "no permission": (4, "Failed to initialize NVML: Insufficient Permissions\n", ""),
    "no device": (6, "No devices were found\n", ""),
    "no device, in a release that calls that success": (0, "No devices were found\n", ""),
    "a GPU that fell off the bus": (
        15,
        "Unable to determine the device handle for GPU 0000:53:00.0: GPU is lost.  Reboot the"
        " system to recover this GPU\n",
        "",
    ),
}


@dataclass
class Card:
    """One GPU and what it says of itself."""

    name: str = "NVIDIA H200"
    uuid: str = "GPU-c5533cd4-5a60-059e-348d-b6d7466932e4"
    bus: str = "00000000:53:00.0"
    memory: str = "143771 MiB"
    compute_cap: str = "9.0"
    persistence: str = "Enabled"
    mig: str = "Disabled"
    # As `mig`, unless it is to change with the next reset.
    pending_mig: str = ""
    compute_mode: str = "Default"
    fabric_state: str = "N/A"
    fabric_status: str = "N/A"
    virtualization: str = "None"
    # Only a vGPU's driver says anything of one.
    license_status: str = ""
    addressing: str = "HMM"
    ecc: str = "Enabled"
    power_limit: str = "700.00 W"
    default_power_limit: str = "700.00 W"
    clock: str = "1980 MHz"
    default_clock: str = "1980 MHz"
    most_clock: str = "1980 MHz"
    # Of its NVLinks, as `nvidia-smi nvlink --status` words it: "26.562 GB/s" or "<inactive>".
    links: Iterable[str] = ()
    lanes: str = "16x"
    most_lanes: str = "16x"
    generation: str = "5"
    newest_generation: str = "5"
    uncorrectable: int = 0
    row_pending: str = "No"
    row_failure: str = "No"
    repair_pending: str = "No"
    recovery_action: str = "None"
    reset_required: str = "No"
    # The names of what is Active, such as hw_thermal_slowdown.
    reasons: Iterable[str] = ("gpu_idle",)
    # pid, type, name, memory
    processes: list[tuple[int, str, str, str]] = field(default_factory=list)

    def xml(self, driver: str) -> str:
        major = int(driver.partition(".")[0])
        what = "event" if major >= 550 else "throttle"
        reasons = "".join(
            f"<clocks_{what}_reason_{name}>"
            f"{'Active' if name in self.reasons else 'Not Active'}"
            f"</clocks_{what}_reason_{name}>"
            for name in _REASONS
        )
        reset = (
            "<gpu_reset_status><reset_required>"
            f"{self.reset_required if major < 570 else _DEPRECATED}"
            "</reset_required></gpu_reset_status>"
        )
        recovery = (
            f"<gpu_recovery_action>{self.recovery_action}</gpu_recovery_action>"
            if major >= 570
            else ""
        )
        repair = (
            f"<channel_repair_pending>{self.repair_pending}</channel_repair_pending>"
            if major >= 580
            else ""
        )
        processes = "".join(
            "<process_info><gpu_instance_id>N/A</gpu_instance_id><compute_instance_id>N/A</compute_instance_id>"
            f"<pid>{pid}</pid><type>{kind}</type><process_name>{escape(name)}</process_name><used_memory>{memory}</used_memory></process_info>"
            for pid, kind, name, memory in self.processes
        )
        counts = (
            "<sram_correctable>0</sram_correctable><sram_uncorrectable_parity>0</sram_uncorrectable_parity>"
            "<sram_uncorrectable_secded>0</sram_uncorrectable_secded><dram_correctable>3</dram_correctable>"
            f"<dram_uncorrectable>{self.uncorrectable}</dram_uncorrectable>"
        )
        power, limit = (
            ("gpu_power_readings", "current_power_limit")
            if major >= 535
            else ("power_readings", "power_limit")
        )
        readings = (
            f"<{power}><power_state>P0</power_state><{limit}>{self.power_limit}</{limit}>"
            f"<default_power_limit>{self.default_power_limit}</default_power_limit></{power}>"
            f"<applications_clocks><graphics_clock>{self.clock}</graphics_clock>"
            "</applications_clocks><default_applications_clocks>"
            f"<graphics_clock>{self.default_clock}</graphics_clock></default_applications_clocks>"
            f"<max_clocks><graphics_clock>{self.most_clock}</graphics_clock></max_clocks>"
            "<module_power_readings><current_power_limit>N/A</current_power_limit>"
            "<default_power_limit>N/A</default_power_limit></module_power_readings>"
        )
        link = (
            "<pci_gpu_link_info><pcie_gen>"
            f"<max_link_gen>{self.newest_generation}</max_link_gen>"
            f"<current_link_gen>{self.generation}</current_link_gen></pcie_gen><link_widths>"
            f"<max_link_width>{self.most_lanes}</max_link_width>"
            f"<current_link_width>{self.lanes}</current_link_width></link_widths>"
            "</pci_gpu_link_info>"
        )
        license_ = (
            "<vgpu_software_licensed_product><licensed_product_name>NVIDIA Virtual Compute Server"
            f"</licensed_product_name><license_status>{self.license_status}</license_status>"
            "</vgpu_software_licensed_product>"
            if self.license_status
            else ""
        )
        return f"""
    <gpu id="{self.bus}">
        <product_name>{self.name}</product_name>
        <product_brand>NVIDIA</product_brand>
        <product_architecture>Hopper</product_architecture>
        <persistence_mode>{self.persistence}</persistence_mode>
        <addressing_mode>{self.addressing}</addressing_mode>
        <mig_mode><current_mig>{self.mig}</current_mig>\
<pending_mig>{self.pending_mig or self.mig}</pending_mig></mig_mode>
        <mig_devices>
            None
        </mig_devices>
        <uuid>{self.uuid}</uuid>
        <minor_number>0</minor_number>
        <vbios_version>96.00.A5.00.1A</vbios_version>
        <gpu_virtualization_mode><virtualization_mode>{self.virtualization}</virtualization_mode>
            <host_vgpu_mode>N/A</host_vgpu_mode></gpu_virtualization_mode>
        {license_}
        {reset if major < 580 else ""}
        {recovery}
        <pci><pci_device_id>233510DE</pci_device_id><pci_bus_id>{self.bus}</pci_bus_id>{link}</pci>
        <clocks_{what}_reasons>{reasons}</clocks_{what}_reasons>
        <fb_memory_usage><total>{self.memory}</total><used>1 MiB</used>\
<free>{self.memory}</free></fb_memory_usage>
        <compute_mode>{self.compute_mode}</compute_mode>
        <ecc_mode><current_ecc>{self.ecc}</current_ecc><pending_ecc>{self.ecc}</pending_ecc></ecc_mode>
        <ecc_errors>
            <volatile>{counts}</volatile>
            <aggregate>{counts}<sram_threshold_exceeded>No</sram_threshold_exceeded></aggregate>
            {repair}
        </ecc_errors>
        <retired_pages><pending_blacklist>N/A</pending_blacklist><pending_retirement>N/A</pending_retirement></retired_pages>
        <remapped_rows>
            <remapped_row_pending>{self.row_pending}</remapped_row_pending>
            <remapped_row_failure>{self.row_failure}</remapped_row_failure>
        </remapped_rows>
        {readings}
        <fabric><state>{self.fabric_state}</state><status>{self.fabric_status}</status></fabric>
        <processes>{processes}</processes>
    </gpu>"""


@dataclass
class NvidiaSmi:
    """Answers a command line of nvidia-smi about its cards."""

    cards: list[Card] = field(default_factory=lambda: [Card()])
    driver: str = "580.105.08"
    cuda: str = "13.0"
    # Ends like this, whatever it is asked.
    failure: Answer | None = None

    def __call__(self, command: list[str]) -> Answer:
        if self.failure is not None:
            return self.failure
        if command[1:] == ["-q", "-x"]:
            return 0, self.xml(), ""
        if command[1:] == ["nvlink", "--status"]:
            return 0, "".join(self._links(index, card) for index, card in enumerate(self.cards)), ""
        fields = (
            next(word for word in command if word.startswith("--query-gpu="))
            .partition("=")[2]
            .split(",")
        )
        return (
            0,
            "".join(
                ", ".join(self._value(card, name) for name in fields) + "\n" for card in self.cards
            ),
            "",
        )

    def xml(self) -> str:
        return f"""<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM \
"nvsmi_device_v{13 if int(self.driver.partition(".")[0]) >= 580 else 12}.dtd">
<nvidia_smi_log>
    <timestamp>Mon Nov 23 09:15:00 2026</timestamp>
    <driver_version>{self.driver}</driver_version>
    <cuda_version>{self.cuda}</cuda_version>
    <attached_gpus>{len(self.cards)}</attached_gpus>\
{"".join(card.xml(self.driver) for card in self.cards)}
</nvidia_smi_log>
"""

    def _links(self, index: int, card: Card) -> str:
        links = [f"\t Link {number}: {speed}\n" for number, speed in enumerate(card.links)]
        return "".join([f"GPU {index}: {card.name} (UUID: {card.uuid})\n", *links])

    def _value(self, card: Card, name: str) -> str:
        values = {
            "name": card.name,
            "driver_version": self.driver,
            "compute_cap": card.compute_cap,
            "memory.total": card.memory,
        }
        return {
            **values,
            "uuid": card.uuid,
            "mig.mode.current": card.mig,
            "vbios_version": "96.00.A5.00.1A",
        }[name]
