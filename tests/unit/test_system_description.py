"""The description of a host in the form of MLPerf's submissions: each field that can be read, and
what a broken file or program costs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import (
    _system_description as system_description,
)

from tests.contract import validators
from tests.doubles.described_host import A64FX, GH200, H100, RED_HAT, XEON, DescribedHost
from tests.doubles.nvidia_smi import FAILURES, Card, NvidiaSmi

# SYSTEM_DESC_REQUIRED_FIELDS and SYSTEM_DESC_MEANINGFUL_RESPONSE_REQUIRED_FIELDS of
# mlcommons/inference, tools/submission/submission_checker/constants.py, commit b66003e. This list
# is the checker's, so it is not taken from the code.
MAY_BE_EMPTY = (
    "host_processor_frequency host_processor_caches host_processor_interconnect"
    " accelerator_frequency accelerator_interconnect_topology accelerator_on-chip_memories"
    " hw_notes sw_notes system_type_detail"
).split()
MEANINGFUL = (
    "division submitter system_type status system_name number_of_nodes host_processor_model_name"
    " host_processors_per_node host_processor_core_count host_memory_capacity"
    " host_memory_configuration host_storage_capacity host_storage_type host_networking"
    " host_network_card_count host_networking_topology accelerators_per_node accelerator_model_name"
    " accelerator_memory_capacity accelerator_host_interconnect accelerator_memory_configuration"
    " accelerator_interconnect cooling framework operating_system other_software_stack"
).split()
# What no host says of itself.
OPERATORS = {
    "division",
    "submitter",
    "system_type",
    "status",
    "cooling",
    "host_memory_configuration",
    "host_networking_topology",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DescribedHost]:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("env", "nvidia-smi"):
        (programs / name).write_text("#!/bin/false\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(os, "sysconf", lambda name: 65536)
    yield DescribedHost(tmp_path / "root").make_gh200()


def record() -> dict[str, Any]:
    """What run_record.summary says of a prepared run."""
    result, manifest = validators.example("prep_result"), validators.example("manifest")
    return {
        "run_id": result["run"]["run_id"],
        "manifest": manifest,
        "prep_result": result,
    }


def described(host: DescribedHost, run: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = system_description.describe(host, record() if run is None else run, str(host.root))
    validators.validate_system(answer)
    for name in MEANINGFUL:
        assert (answer[name] == "") == (name in answer["slice_bench"]["to_fill_in"]), name
    return answer


def test_a_gh200_is_described_as_the_contract_shows(host: DescribedHost) -> None:
    answer = described(host)
    expected = validators.example("system")
    answer["slice_bench"]["described_at"] = expected["slice_bench"]["described_at"]
    assert answer == expected
    # Few reads: a prep could not be slowed by it, and asks nothing of it.
    assert host.ran == ["nvidia-smi -q -x", "env LC_ALL=C lscpu"]


@pytest.mark.parametrize("name", [*MEANINGFUL, *MAY_BE_EMPTY])
def test_each_field_that_the_checker_demands_is_there(host: DescribedHost, name: str) -> None:
    answer = described(host)
    assert isinstance(answer[name], str)
    if name in MEANINGFUL:
        assert bool(answer[name]) == (name not in OPERATORS)


def test_the_fields_are_those_of_the_checker() -> None:
    assert sorted(system_description.REQUIRED) == sorted([*MEANINGFUL, *MAY_BE_EMPTY])


def test_two_xeons_with_eight_gpus(host: DescribedHost) -> None:
    host.lscpu = (0, XEON, "")
    (host.root / "sys/devices/soc0/soc_id").unlink()
    host.write("etc/os-release", RED_HAT)
    host.smi = NvidiaSmi([H100] * 8)
    for card in range(8):
        function = f"0000:{card:02x}:00.0"
        host.add_infiniband(f"mlx5_{card}", function, "400 Gb/sec (4X NDR)", "InfiniBand")
        host.add_port(f"ib{card}", function, "400000", kind="32")
    answer = described(host)
    assert {
        name: answer[name]
        for name in answer
        if name.startswith(("host_processor", "accelerator", "operating", "host_memory_capacity"))
    } == {
        "host_processor_model_name": "Intel(R) Xeon(R) Platinum 8462Y+",
        "host_processors_per_node": "2",
        "host_processor_core_count": "28",
        "host_processor_frequency": "",
        "host_processor_caches": "L1d 48K, L1i 32K, L2 2048K, L3 61440K",
        "host_processor_interconnect": "",
        # Without a coherent GPU, all of the kernel's memory is the host's.
        "host_memory_capacity": "574.0 GiB",
        "accelerators_per_node": "8",
        "accelerator_model_name": "NVIDIA H100 80GB HBM3",
        "accelerator_memory_capacity": "79.6 GiB",
        "accelerator_frequency": "1980 MHz",
        "accelerator_host_interconnect": "PCIe Gen5 x16",
        "accelerator_interconnect": "NVLink, 18x 26.562 GB/s for each GPU",
        "accelerator_interconnect_topology": "",
        "accelerator_memory_configuration": "HBM3",
        "accelerator_on-chip_memories": "",
        "operating_system": "Red Hat Enterprise Linux 9.4 (Plow), Linux 6.8.0-1013-nvidia-64k",
    }
    assert answer["host_networking"] == (
        "1x Ethernet 1 Gb/s (igb), 1x Ethernet 200 Gb/s (mlx5_core), 1x Ethernet of unknown speed"
        " (mlx5_core), 8x InfiniBand 400 Gb/sec (4X NDR)"
    )
    # Two ports of one card are one card, and so are its InfiniBand and its Ethernet.
    assert answer["host_network_card_count"] == "9"


@pytest.mark.parametrize(
    ("cards", "interconnect", "topology"),
    [
        ([Card()], "N/A", "N/A"),
        ([Card(), Card()], "PCIe Gen5 x16", ""),
        ([Card(links=["<inactive>"] * 4), Card()], "PCIe Gen5 x16", ""),
        (
            [Card(links=["25 GB/s", "<inactive>", "25 GB/s"], fabric_state="Completed")] * 2,
            "NVLink, 2x 25 GB/s for each GPU",
            "NVSwitch",
        ),
        # Each says what it has.
        (
            [Card(links=["25 GB/s"] * 2), Card(links=["25 GB/s"])],
            "NVLink, 2x 25 GB/s, 1x 25 GB/s for each GPU",
            "",
        ),
    ],
    ids=["one", "no links", "inactive links", "switched", "uneven"],
)
def test_how_gpus_are_connected(
    host: DescribedHost, cards: list[Card], interconnect: str, topology: str
) -> None:
    host.smi = NvidiaSmi(cards)
    answer = described(host)
    assert answer["accelerator_interconnect"] == interconnect
    assert answer["accelerator_interconnect_topology"] == topology


def test_a_host_without_a_gpu_says_so(
    host: DescribedHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    answer = described(host, {})
    assert answer["accelerators_per_node"] == "0"
    fields = {name for name in answer if name.startswith("accelerator_")}
    assert {answer[name] for name in fields} == {"N/A"}
    # Nothing is known of software that was never prepared.
    assert set(answer["slice_bench"]["to_fill_in"]) == {
        *OPERATORS,
        "framework",
        "other_software_stack",
    }


@pytest.mark.parametrize(
    ("kind", "vendor"),
    [("0x030200", "0x10de"), ("0x030000", "0x10de"), ("0x120000", "0x1002")],
)
def test_an_accelerator_without_a_driver_is_not_none(
    host: DescribedHost, tmp_path: Path, kind: str, vendor: str
) -> None:
    (tmp_path / "bin/nvidia-smi").unlink()
    host.write("sys/bus/pci/devices/0000:53:00.0/class", kind)
    host.write("sys/bus/pci/devices/0000:53:00.0/vendor", vendor)
    answer = described(host)
    assert answer["accelerators_per_node"] == answer["accelerator_model_name"] == ""
    assert "no driver" in answer["slice_bench"]["unread"][0]


# What each loss costs; nothing else may change.
GPUS = {
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "accelerator_frequency",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "accelerator_interconnect_topology",
    "accelerator_memory_configuration",
}
CPUS = {
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
}
BROKEN: dict[str, tuple[str, set[str]]] = {
    "no os-release": ("etc/os-release", {"operating_system"}),
    "no memory": ("sys/devices/system/node/node0/meminfo", {"host_memory_capacity"}),
    "no nodes": ("sys/devices/system/node/has_cpu", {"host_memory_capacity"}),
    "no product": ("sys/class/dmi/id/product_name", {"system_name"}),
}


@pytest.mark.parametrize("text", ["", None, b"\xff\xfe\x00\x1b[31m\n" * 99], ids=str)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_costs_its_own_field(
    host: DescribedHost, case: str, text: bytes | str | None
) -> None:
    path, lost = BROKEN[case]
    whole = described(host)
    (host.root / path).unlink()
    if text is not None:
        host.write(path, text)
    answer = described(host)
    changed = {name for name in whole if whole[name] != answer[name]} - {"slice_bench"}
    if isinstance(text, bytes) and case == "no product":
        # A board may say anything, and no terminal obeys it.
        assert answer["system_name"].isprintable()
        return
    assert changed == lost and all(answer[name] == "" for name in lost)
    [reason] = answer["slice_bench"]["unread"]
    assert str(host.root) in reason and reason.isprintable()


@pytest.mark.parametrize(
    "folder, lost",
    [
        ("sys/block", {"host_storage_capacity", "host_storage_type"}),
        ("sys/class/net", {"host_networking", "host_network_card_count"}),
    ],
)
def test_a_folder_that_is_missing_costs_its_own_fields(
    host: DescribedHost, folder: str, lost: set[str]
) -> None:
    whole = described(host)
    (host.root / folder).rename(host.root / "elsewhere")
    answer = described(host)
    assert {name for name in whole if whole[name] != answer[name]} - {"slice_bench"} == lost
    assert folder in answer["slice_bench"]["unread"][0]


@pytest.mark.parametrize("failure", FAILURES)
def test_an_nvidia_smi_that_fails_costs_what_it_says(host: DescribedHost, failure: str) -> None:
    whole = described(host)
    host.smi.failure = FAILURES[failure]
    answer = described(host)
    changed = {name for name in whole if whole[name] != answer[name]} - {"slice_bench"}
    # The driver's version is also in the records of the run, of an earlier one here.
    assert changed == GPUS | {"other_software_stack"}
    assert "nvidia-smi" in answer["slice_bench"]["unread"][0]
    # Grace says of itself what its memory is, also without its GPU.
    assert answer["host_memory_capacity"] == whole["host_memory_capacity"]


@pytest.mark.parametrize(
    "lscpu",
    [(127, "", "env: 'lscpu': No such file or directory\n"), (1, "", ""), (0, "", "")],
    ids=["missing", "failed", "silent"],
)
def test_an_lscpu_that_fails_costs_what_it_says(
    host: DescribedHost, lscpu: tuple[int, str, str]
) -> None:
    whole = described(host)
    host.lscpu = lscpu
    answer = described(host)
    assert {name for name in whole if whole[name] != answer[name]} - {"slice_bench"} <= CPUS
    assert "lscpu" in answer["slice_bench"]["unread"][0]
    assert answer["host_processors_per_node"] == answer["host_processor_core_count"] == ""


@pytest.mark.parametrize(
    ("text", "model", "count", "cores"),
    [
        (A64FX, "A64FX", "", ""),
        # A thousand CPUs in lines that none of a host with 72 has.
        (
            XEON.replace("112", "4096")
            + "".join(f"NUMA node{node} CPU(s): {node}\n" for node in range(20_000)),
            "Intel(R) Xeon(R) Platinum 8462Y+",
            "2",
            "28",
        ),
        (XEON.replace("Socket(s):           2", "Socket(s):  two\x1b[2J"), None, "", "28"),
        (XEON.replace("Core(s) per socket:  28", "Core(s) per socket:  9" * 9), None, "2", ""),
        (
            XEON.replace("Intel(R)", "In\udcfftel\x1b(R)"),
            "In tel (R) Xeon(R) Platinum 8462Y+",
            "2",
            "28",
        ),
        (XEON.replace("Platinum", "P" * 9999), None, "2", "28"),
    ],
    ids=["no sockets", "many CPUs", "not a number", "a long number", "bytes", "a long name"],
)
def test_strange_processors_cost_their_own_fields(
    host: DescribedHost, text: str, model: str | None, count: str, cores: str
) -> None:
    (host.root / "sys/devices/soc0/soc_id").unlink()
    host.lscpu = (0, text, "")
    answer = described(host)
    assert model in (None, answer["host_processor_model_name"])
    assert answer["host_processor_model_name"].isprintable()
    assert (answer["host_processors_per_node"], answer["host_processor_core_count"]) == (
        count,
        cores,
    )


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ((1, "", "Unknown command\n"), "exit code 1"),
        ((255, "", ""), "exit code 255"),
    ],
    ids=["an old driver", "no words"],
)
def test_links_that_cannot_be_asked_cost_the_interconnect(
    host: DescribedHost, links: tuple[int, str, str], reason: str
) -> None:
    host.smi = NvidiaSmi([GH200, GH200])
    host.links = links
    answer = described(host)
    assert answer["accelerator_interconnect"] == ""
    assert answer["accelerator_memory_capacity"] == "95.6 GiB"
    assert reason in answer["slice_bench"]["unread"][0]


@pytest.mark.parametrize(
    ("vendor", "product", "name"),
    [
        ("Supermicro", "ARS-111GL-NHR", "Supermicro ARS-111GL-NHR"),
        ("NVIDIA", "NVIDIA DGX H100", "NVIDIA DGX H100"),
        ("To Be Filled By O.E.M.", "ARS-111GL-NHR", "ARS-111GL-NHR"),
        ("ASUS", "System Product Name", ""),
        ("", "Default string", ""),
    ],
)
def test_a_board_without_a_name_gets_none(
    host: DescribedHost, vendor: str, product: str, name: str
) -> None:
    host.write("sys/class/dmi/id/sys_vendor", f"{vendor}\n")
    host.write("sys/class/dmi/id/product_name", f"{product}\n")
    assert described(host)["system_name"] == name


def test_drives_are_counted_by_kind_and_size(host: DescribedHost) -> None:
    host.add_drive("nvme2n1", 7_501_476_528)
    host.add_drive("sda", 35_156_656_128, "1")
    host.add_drive("vda", 537_109_375, "1")
    # A path to a namespace, a stick, an empty reader of cards, and one that says no size.
    host.add_drive("nvme0c0n1", 7_501_476_528, hidden="1")
    host.add_drive("sdb", 60_000_000, removable="1")
    host.add_drive("sdc", 0)
    host.write("sys/block/sdd/device/uevent", "")
    answer = described(host)
    assert answer["host_storage_capacity"] == "1x 18.00 TB, 1x 960 GB, 2x 3.84 TB, 1x 275 GB"
    assert answer["host_storage_type"] == "HDD, NVMe SSD, virtual disk"


def test_a_part_of_a_card_and_the_bmc_are_no_cards(host: DescribedHost) -> None:
    whole = described(host)
    host.add_port("enp1s0f0v0", "0000:01:00.2", "200000")
    host.write("sys/devices/0000:01:00.2/physfn/uevent", "")
    host.add_port("usb0", "pci0000:00/usb1/1-1", "100", "cdc_ether")
    answer = described(host)
    assert answer["host_networking"] == whole["host_networking"]
    assert answer["host_network_card_count"] == whole["host_network_card_count"] == "2"


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"manifest": None, "prep_result": None, "run_id": None},
        {"manifest": {"versions": None}, "prep_result": {"run": "none"}},
        {"manifest": {"versions": {"sglang": 5}}, "prep_result": {"run": {"cuda": ["x"]}}},
    ],
    ids=["nothing", "no prep", "no objects", "no texts"],
)
def test_records_that_say_nothing_cost_the_software(
    host: DescribedHost, run: dict[str, Any]
) -> None:
    answer = described(host, run)
    assert answer["framework"] == ""
    assert answer["other_software_stack"] == "NVIDIA driver 580.105.08"
    assert answer["slice_bench"]["run_id"] is None
