"""The health of a host's GPUs: what is refused, what is warned of, and what is left alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_health as gpu_health
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli
from ansible_collections.slice_bench.sglang.plugins.module_utils._gpu_health import (
    SmiError,
    Use,
    Verdict,
)

from tests.doubles.nvidia_smi import FAILURES, Answer, Card, NvidiaSmi

SECOND = "GPU-529b3263-c96d-b557-bc75-697f04917eda"
GH200 = Card(
    name="NVIDIA GH200 480GB", bus="00000009:01:00.0", memory="97871 MiB", addressing="ATS"
)


def nobody(command: list[str]) -> Answer:
    raise AssertionError(f"nothing was to be run, and {command} was")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder with a readable, empty kernel log, of a host without programs."""
    for folder in ("dev", "proc", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "dev" / "kmsg").touch()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def described(smi: NvidiaSmi, root: Path, container: str | None = None) -> dict[str, Any]:
    health = gpu_health.describe(gpu_health.parse(smi.xml()), nobody, container, str(root))
    json.dumps(health)
    return health


def judged(smi: NvidiaSmi, root: Path, **use: Any) -> Verdict:
    return gpu_health.judge(described(smi, root), Use(**use))


def lay(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    "driver", ["535.183.01", "550.163.01", "570.148.08", "580.159.04", "595.91.07"]
)
def test_a_healthy_gpu_is_described_and_nothing_is_said(root: Path, driver: str) -> None:
    smi = NvidiaSmi([Card()], driver=driver)
    health = described(smi, root)
    assert (
        health["driver"],
        health["cuda"],
        health["xid"],
        health["grace"],
        health["processes"],
    ) == (driver, "13.0", [], None, [])
    [gpu] = health["gpus"]
    assert (
        gpu["name"] == "NVIDIA H200"
        and gpu["memory_mib"] == 143771
        and gpu["bus"] == "00000000:53:00.0"
    )
    assert (gpu["persistence"], gpu["mig"], gpu["ecc"], gpu["uncorrectable"], gpu["lost"]) == (
        True,
        False,
        True,
        0,
        False,
    )
    assert judged(smi, root, image_cuda="13.0") == Verdict()


def test_what_a_gpu_does_not_tell_is_not_held_against_it(root: Path) -> None:
    answer = (
        "<nvidia_smi_log><driver_version>1</driver_version><gpu"
        ' id="x"><product_name>Old</product_name></gpu></nvidia_smi_log>'
    )
    health = gpu_health.describe(gpu_health.parse(answer), nobody, None, str(root))
    assert health["gpus"][0]["persistence"] is None and health["gpus"][0]["memory_mib"] is None
    assert gpu_health.judge(health, Use(image_cuda="13.0")) == Verdict()


def test_the_newer_names_of_the_versions_are_read() -> None:
    answer = (
        "<nvidia_smi_log><kmd_version>610.57</kmd_version>"
        '<cuda_umd_version>14.1</cuda_umd_version><gpu id="0"></gpu></nvidia_smi_log>'
    )
    smi = gpu_health.parse(answer)
    assert (smi.driver, smi.cuda, smi.gpus[0]["name"]) == ("610.57", "14.1", "unknown")


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ("", "nothing"),
        ("NVIDIA H200\n", "NVIDIA H200"),
        ("<nvidia_smi_log></nvidia_smi_log>", "no GPU"),
        ("<nvidia_smi_log><gpu></nvidia_smi_log>", "no GPU"),
        ("<nvidia_smi_log>&bomb;</nvidia_smi_log>", "no GPU"),
        ("No devices were found\n", "No devices were found"),
        ("<nvidia_smi_log>" + " " * 9 * 2**20 + "</nvidia_smi_log>", "more than any"),
    ],
)
def test_what_describes_no_gpu_is_said_to(answer: str, word: str) -> None:
    with pytest.raises(SmiError, match=word) as refusal:
        gpu_health.parse(answer)
    assert "\n" not in str(refusal.value)


def test_entities_are_not_expanded() -> None:
    bomb = '<!DOCTYPE nvidia_smi_log [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    smi = gpu_health.parse(
        bomb + "<nvidia_smi_log><gpu><product_name>&b; &amp; &lt;</product_name></gpu>"
        "</nvidia_smi_log>"
    )
    assert smi.gpus[0]["name"] == "&b; & <"


def asked(code: int, output: str, error: str = "") -> tuple[gpu_health.Smi, list[str]]:
    return gpu_health.ask("nvidia-smi", lambda command: (code, output, error))


def test_a_driver_that_does_not_answer_is_told_and_a_corrupt_inforom_only_warned_of() -> None:
    with pytest.raises(SmiError, match="ended with exit code 1"):
        asked(1, "\n", "\0")
    text = "WARNING: infoROM is corrupted at gpu 0000:53:00.0\n" + NvidiaSmi().xml()
    smi, [warning] = asked(14, text)
    assert len(smi.gpus) == 1 and "infoROM" in warning


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        ("no module", "`modprobe nvidia` as root"),
        ("an updated driver", "reboot the host, or end what uses the GPUs and reload"),
        ("no library", "install all of the driver's packages"),
        ("no permission", "set ansible_become"),
        ("no device", "lspci -k -d 10de:"),
        ("no device, in a release that calls that success", "lspci -k -d 10de:"),
        ("a GPU that fell off the bus", "reboot the host, and have the hardware checked"),
    ],
)
@pytest.mark.parametrize("code", [None, 1, 255])
def test_each_failure_of_nvidia_smi_has_its_remedy(
    failure: str, remedy: str, code: int | None
) -> None:
    """By its exit code, and where a release ends with 1 or 255 whatever it is, by its words."""
    own, output, error = FAILURES[failure]
    if (own if code is None else code) != 0:
        with pytest.raises(SmiError) as refusal:
            asked(own if code is None else code, output, error)
        assert remedy in str(refusal.value) and len(str(refusal.value)) < 400
    message = gpu_health.smi_refusal(own if code is None else code, output, error)
    assert remedy in message and "\n" not in message
    assert gpu_health.names_of(own if code is None else code, output) == []


def test_a_code_alone_is_enough_for_the_remedy() -> None:
    assert "nvidia-smi -r" in gpu_health.smi_refusal(16, "", "")
    assert "not a container on it" in gpu_health.smi_refusal(17, "", "")


def test_a_failure_beside_a_description_is_a_warning() -> None:
    two = NvidiaSmi([Card(), Card(uuid=SECOND)]).xml()
    one = two[: two.index('<gpu id="', two.index("</gpu>"))] + "</nvidia_smi_log>"
    left_out = "Unable to determine the device handle for GPU1: 0000:54:00.0: Unknown Error\n" + one
    for code, word in ((0, "leaves out a GPU"), (15, "reboot the host")):
        smi, warnings = asked(code, left_out)
        assert len(smi.gpus) == 1 and not smi.damaged
        assert word in warnings[0] and "GPU1: 0000:54:00.0" in warnings[0]
        assert "the driver has 2 GPUs and nvidia-smi describes 1" in warnings[1]


# --- an answer that is damaged --------------------------------------------------------------------

# Three GPUs, of which each is refused, or warned of, for another reason.
SICK = NvidiaSmi(
    [
        Card(mig="Enabled"),
        Card(memory="GPU is lost", uuid=SECOND, bus="00000000:54:00.0"),
        Card(
            compute_mode="Prohibited",
            persistence="Disabled",
            uncorrectable=4,
            uuid="GPU-3",
            bus="00000000:55:00.0",
        ),
    ],
    driver="550.163.01",
    cuda="12.4",
)
VERDICT = {
    "mig": "GPU 0 is in MIG mode",
    "lost": "GPU 1 is lost to the driver",
    "mode": "GPU 2 is in compute mode Prohibited",
    "driver": "too old for the image",
    "persistence": "GPU 2 is not in persistence mode",
    "ecc": "GPU 2 had 4 uncorrectable ECC errors",
}


def verdict_of(answer: str, root: Path) -> set[str]:
    """What of VERDICT is still said of an answer."""
    smi, warnings = asked(0, answer)
    health = gpu_health.describe(smi, nobody, None, str(root))
    verdict = gpu_health.judge(health, Use(image_cuda="13.0"))
    text = "\n".join([*verdict.problems, *verdict.warnings])
    said = {name for name, words in VERDICT.items() if words in text}
    doubts = ("is damaged", "values that are unknown here")
    assert said == set(VERDICT) or any(doubt in warning for doubt in doubts for warning in warnings)
    return said


def test_all_of_a_sound_answer_is_judged_without_a_doubt(root: Path) -> None:
    assert verdict_of(SICK.xml(), root) == set(VERDICT)
    assert asked(0, SICK.xml())[1] == []


@pytest.mark.parametrize(
    ("old", "new", "costs"),
    [
        # FIELD: one malformed element, one control character.
        ("NVIDIA H200", "NVIDIA\x07 H200", set()),
        ("<vbios_version>", "<vbios_version", set()),
        ("</uuid>", "", set()),
        ("<uuid>", "", set()),
        ("</product_brand>", "</product_brnad>", set()),
        ("<minor_number>0</minor_number>", "<minor_number>0 & <1></minor_number>", set()),
        ("</mig_mode>", "", set()),
        ("<current_mig>Enabled", "<current_mig>Ena\x00bled", set()),
        ("<current_mig>Enabled", "<current_mig>Enab\ufffdled", {"mig"}),
        ("<current_mig>", "<current_m", {"mig"}),
        ("<total>GPU is lost</total>", "", set()),
        ("<fb_memory_usage>", "", set()),
        ("<compute_mode>Prohibited", "<compute_mode>Proh", {"mode"}),
        ("<cuda_version>12.4", "<cuda_version>twelve", {"driver"}),
        ("<driver_version>550.163.01", "<driver_version", set()),
        ("</pci>", "\nNVRM: GPU at PCI:0000:53:00: something else\n</pci>", set()),
        ("</gpu>", "", set()),
        ('<gpu id="00000000:54:00.0">', "", set()),
        ('<gpu id="00000000:53:00.0">', '<gpu id="00000000:53:00.0"', set()),
        ("<product_name>", "<product_nam>", set()),
        ("NVIDIA H200</product_name>", "<product_name>", set()),
        ("NVIDIA H200</product_name>", "N<product_name>", set()),
        ("</nvidia_smi_log>", "", set()),
        ("<nvidia_smi_log>", "", set()),
        ('<?xml version="1.0" ?>', "\ufeff<?xml version='1.1' encoding='latin-1'?>", set()),
        ("<processes></processes>", "<processes><process_info><pid>1</processes>", set()),
        ("<ecc_errors>", "<ecc_errors>" * 20, set()),
    ],
)
def test_what_is_damaged_costs_itself_alone(
    root: Path, old: str, new: str, costs: set[str]
) -> None:
    answer = SICK.xml()
    assert old in answer
    assert set(VERDICT) - verdict_of(answer.replace(old, new, 1), root) == costs
    if "cuda" not in old and "current_mig" not in old and "compute_mode" not in old:
        # Of each GPU at once.
        assert verdict_of(answer.replace(old, new), root) == set(VERDICT)


def test_an_answer_that_is_cut_off_costs_what_was_cut(root: Path) -> None:
    answer = SICK.xml()
    last = answer.index("00000000:55:00.0")
    assert verdict_of(answer[:last], root) == {"mig", "lost", "driver"}
    smi, warnings = asked(0, answer[:last])
    assert "the driver has 3 GPUs and nvidia-smi describes" in warnings[0] or len(smi.gpus) == 3


def test_a_partition_of_a_gpu_says_nothing_of_the_gpu_itself() -> None:
    """As a real A100 in MIG mode prints it, before its own memory."""
    partition = (
        "<mig_devices><mig_device><index>0</index><ecc_error_count><volatile_count>"
        "<sram_uncorrectable>7</sram_uncorrectable></volatile_count></ecc_error_count>"
        "<fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device></mig_devices>"
    )
    whole = NvidiaSmi([Card(mig="Enabled")]).xml()
    answer = whole.replace("<mig_devices>\n            None\n        </mig_devices>", partition)
    assert answer != whole
    for text in (answer, answer.replace("</mig_device>", "")):
        [gpu] = gpu_health.parse(text).gpus
        assert (gpu["memory_mib"], gpu["uncorrectable"], gpu["mig"]) == (143771, 0, True)


def test_names_that_a_damaged_answer_lacks_are_asked_for() -> None:
    smi = NvidiaSmi([Card(), Card(name="NVIDIA L4", uuid=SECOND)])
    sound = gpu_health.parse(smi.xml())
    assert gpu_health.names(sound, "nvidia-smi", nobody) == ["NVIDIA H200", "NVIDIA L4"]
    damaged = gpu_health.parse(smi.xml().replace("product_name>", "", 1))
    assert damaged.gpus[0]["name"] == "unknown"
    assert gpu_health.names(damaged, "nvidia-smi", smi) == ["NVIDIA H200", "NVIDIA L4"]
    smi.failure = FAILURES["no module"]
    assert gpu_health.names(damaged, "nvidia-smi", smi) == ["unknown", "NVIDIA L4"]


# --- what is refused and warned of ----------------------------------------------------------------


def test_mig_is_refused_with_the_way_to_turn_it_off(root: Path) -> None:
    verdict = judged(NvidiaSmi([Card(), Card(mig="Enabled", uuid=SECOND)]), root)
    [problem] = verdict.problems
    assert "GPU 1 is in MIG mode" in problem and "`nvidia-smi -i 1 -mig 0` as root" in problem
    assert (
        judged(NvidiaSmi([Card(), Card(mig="Enabled", uuid=SECOND)]), root, visible="0")
        == Verdict()
    )


def test_mig_that_is_about_to_change_is_told_as_it_will_be(root: Path) -> None:
    coming = judged(NvidiaSmi([Card(), Card(pending_mig="Enabled", uuid=SECOND)]), root)
    assert coming.problems == []
    assert "GPU 1 is in MIG mode after the next reset" in coming.warnings[0]
    assert "`nvidia-smi -i 1 -mig 0` as root" in coming.warnings[0]
    [problem] = judged(NvidiaSmi([Card(mig="Enabled", pending_mig="Disabled")]), root).problems
    assert "until the next reset" in problem and "`nvidia-smi -i 0 -r` as root" in problem
    assert "-mig 0" not in problem


@pytest.mark.parametrize(
    ("card", "problem", "warning"),
    [
        (
            Card(compute_mode="Prohibited"),
            "GPU 0 is in compute mode Prohibited, in which nothing can compute on them:"
            " `nvidia-smi -i 0 -c 0` as root",
            None,
        ),
        (
            Card(compute_mode="Exclusive_Process"),
            None,
            "GPU 0 is in compute mode Exclusive_Process",
        ),
        (Card(compute_mode="Exclusive_Thread"), None, "`nvidia-smi -i 0 -c 0` as root"),
        (
            Card(fabric_state="In Progress"),
            "GPU 0 is not in the NVLink fabric (state In Progress), and CUDA fails with error 802",
            None,
        ),
        (Card(fabric_state="Not Started"), "`systemctl status nvidia-fabricmanager`", None),
        (
            Card(fabric_state="Completed", fabric_status="Insufficient Resources"),
            None,
            "GPU 0 is refused by the NVLink fabric (Insufficient Resources)",
        ),
        (
            Card(virtualization="VGPU", license_status="Unlicensed (Unrestricted)"),
            None,
            "GPU 0 is without a vGPU license",
        ),
        (
            Card(virtualization="VGPU", license_status="Unlicensed (Restricted)"),
            None,
            "systemctl restart nvidia-gridd",
        ),
        (Card(memory="[GPU requires reset]"), None, "GPU 0 must be reset, the GPU requires it"),
    ],
)
def test_each_mode_and_state_has_its_word(
    root: Path, card: Card, problem: str | None, warning: str | None
) -> None:
    verdict = judged(NvidiaSmi([card]), root)
    for said, words in ((verdict.problems, problem), (verdict.warnings, warning)):
        assert len(said) == (words is not None)
        assert words is None or (words in said[0] and len(said[0]) < 400)
    assert judged(NvidiaSmi([card, Card(uuid=SECOND)]), root, visible="1") == Verdict(), (
        "GPUs that are not used are not judged"
    )


@pytest.mark.parametrize(
    "card",
    [
        Card(fabric_state="Completed", fabric_status="Success"),
        Card(fabric_state="Not Supported"),
        Card(fabric_state=""),
        Card(virtualization="VGPU", license_status="Licensed (Expiry: 2026-12-7 16:1:44 GMT)"),
        # What a GPU that is passed through whole says, and one on bare metal.
        Card(virtualization="Pass-Through", license_status="Unlicensed"),
        Card(license_status="Unlicensed"),
        Card(compute_mode="N/A"),
        Card(mig="N/A"),
    ],
)
def test_modes_and_states_that_are_well_are_left_alone(root: Path, card: Card) -> None:
    assert judged(NvidiaSmi([card]), root, tp=2) == Verdict()


def test_a_gpu_that_its_fabric_refused_cannot_work_with_others(root: Path) -> None:
    card = Card(fabric_state="Completed", fabric_status="Unknown Error")
    [problem] = judged(NvidiaSmi([card]), root, tp=2).problems
    assert "refused by the NVLink fabric" in problem


@pytest.mark.parametrize("field", ["memory", "persistence", "mig", "row_pending"])
def test_a_lost_gpu_is_one_whatever_field_says_so(root: Path, field: str) -> None:
    card = Card(**{field: "GPU is lost"})  # type: ignore[arg-type]
    assert "GPU 0 is lost" in judged(NvidiaSmi([card]), root).problems[0]


def test_a_lost_gpu_is_refused(root: Path) -> None:
    [problem] = judged(NvidiaSmi([Card(), Card(memory="GPU is lost")]), root).problems
    assert "GPU 1 is lost" in problem and "reboot" in problem


def test_gpus_of_different_kinds_are_refused_where_several_are_to_work_together(root: Path) -> None:
    smi = NvidiaSmi([Card(), Card(name="NVIDIA L4", uuid=SECOND), Card(uuid="GPU-3")])
    alone, together = judged(smi, root), judged(smi, root, tp=2)
    assert alone.problems == [] and together.warnings == []
    for [words] in (alone.warnings, together.problems):
        assert "NVIDIA H200 (0, 2)" in words and "NVIDIA L4 (1)" in words
        assert f"sgl_server_env: {{CUDA_VISIBLE_DEVICES: '{Card().uuid},GPU-3'}}" in words
    # What the message advises is enough.
    assert judged(smi, root, tp=2, visible=f"{Card().uuid},GPU-3") == Verdict()
    assert judged(smi, root, tp=2, visible="0, 2") == Verdict()
    assert len(judged(smi, root, tp=2, visible="0,1").problems) == 1


def test_visible_devices_that_are_not_there_are_told(root: Path) -> None:
    verdict = judged(NvidiaSmi(), root, visible="GPU-none\n")
    assert (
        verdict.problems == []
        and "CUDA_VISIBLE_DEVICES is GPU-none, and no GPU here is that" in verdict.warnings[0]
    )


def test_a_driver_too_old_for_the_images_cuda_is_refused(root: Path) -> None:
    smi = NvidiaSmi(driver="550.163.01", cuda="12.4")
    [problem] = judged(smi, root, image_cuda="13.0.1").problems
    assert (
        "driver 550.163.01 supports CUDA 12.4" in problem
        and "CUDA 13.0" in problem
        and "580.65.06 or later" in problem
        and "v0.5.19-cu129" in problem
        # The inventory names the CUDA of the default base.
        and "sgl_image_cuda to 12.9" in problem
        and len(problem) < 400
    )
    minor = judged(smi, root, image_cuda="12.9")
    assert minor.problems == [] and "PTX" in minor.warnings[0] and "12.9" in minor.warnings[0]
    for fine in ("12.4.1", "12.1", "11.8", None, "", "latest"):
        assert judged(smi, root, image_cuda=fine) == Verdict(), fine
    assert judged(NvidiaSmi(cuda="Not Found"), root, image_cuda="13.0") == Verdict()


def test_a_driver_that_the_images_own_libraries_make_do_with_is_not_refused(root: Path) -> None:
    requires = "cuda>=13.0 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=550,driver<551"
    verdict = judged(
        NvidiaSmi(driver="550.163.01", cuda="12.4"),
        root,
        image_cuda="13.0",
        image_requires=requires,
    )
    assert verdict.problems == [] and "compatibility libraries" in verdict.warnings[0]
    verdict = judged(
        NvidiaSmi(driver="560.35.03", cuda="12.6"), root, image_cuda="13.0", image_requires=requires
    )
    assert len(verdict.problems) == 1 and verdict.warnings == []


def test_an_image_says_which_cuda_it_has() -> None:
    env = [
        "PATH=/bin",
        "CUDA_VERSION=12.9.1",
        "NVIDIA_REQUIRE_CUDA=cuda>=12.9 brand=tesla,driver>=535,driver<536",
        "odd",
        5,
    ]
    assert gpu_health.image_cuda({"Config": {"Env": env}}) == (
        "12.9.1",
        "cuda>=12.9 brand=tesla,driver>=535,driver<536",
    )
    without: list[dict[str, Any]] = [
        {},
        {"Config": None},
        {"Config": {"Env": None}},
        {"Config": {"Env": {}}},
    ]
    for nothing in without:
        assert gpu_health.image_cuda(nothing) == (None, "")


@pytest.mark.parametrize(
    ("card", "words"),
    [
        (Card(persistence="Disabled"), "GPU 0 is not in persistence mode"),
        (Card(persistence="Disabled"), "`systemctl enable --now nvidia-persistenced`, or"),
        (
            Card(persistence="Disabled", addressing="ATS"),
            "`nvidia-smi -pm 1` until the next boot; nvidia-persistenced fails on Grace unless",
        ),
        (Card(uncorrectable=7), "7 uncorrectable ECC errors"),
        (Card(row_pending="Yes"), "a row remap is pending"),
        (Card(row_failure="Yes"), "a row remap failed: replace it"),
        (Card(repair_pending="Yes"), "a repair is pending"),
        (Card(recovery_action="Drain and Reset"), "the driver asks for 'Drain and Reset'"),
        (
            Card(reasons=["hw_slowdown", "hw_thermal_slowdown"]),
            "slowed down now (hw_slowdown, hw_thermal_slowdown)",
        ),
        (Card(reasons=["sw_thermal_slowdown"]), "cooling"),
        (Card(reasons=["hw_power_brake_slowdown"]), "check its power"),
    ],
)
def test_each_condition_is_one_warning(root: Path, card: Card, words: str) -> None:
    verdict = judged(NvidiaSmi([card]), root)
    assert verdict.problems == []
    [warning] = verdict.warnings
    assert words in warning and "GPU 0" in warning


def test_older_drivers_say_the_same_in_other_words(root: Path) -> None:
    card = Card(reasons=["hw_thermal_slowdown"], reset_required="Yes")
    warnings = judged(NvidiaSmi([card], driver="535.183.01"), root).warnings
    assert (
        len(warnings) == 2
        and "a reset is required" in warnings[0]
        and "hw_thermal_slowdown" in warnings[1]
    )


def test_a_gpu_at_its_power_limit_is_a_busy_one(root: Path) -> None:
    assert (
        judged(NvidiaSmi([Card(reasons=["sw_power_cap", "applications_clocks_setting"])]), root)
        == Verdict()
    )


@pytest.fixture
def other() -> Iterator[int]:
    """The pid of a process that runs."""
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_another_process_on_a_gpu_is_named_with_its_memory_and_without_its_arguments(
    root: Path, other: int
) -> None:
    smi = NvidiaSmi(
        [
            Card(),
            Card(
                uuid=SECOND,
                processes=[(other, "C", "/usr/bin/python3 serve --api-key hunter2", "61234 MiB")],
            ),
        ]
    )
    [warning] = judged(smi, root).warnings
    assert (
        f"GPU 1 is in use by another process, pid {other} (/usr/bin/python3)" in warning
        and "61234 MiB" in warning
        and "gpu_busy" in warning
    )
    assert "hunter2" not in json.dumps(described(smi, root))
    assert judged(smi, root, visible="0") == Verdict()


def test_our_own_containers_processes_are_told_apart_by_their_control_group(
    root: Path, other: int
) -> None:
    smi = NvidiaSmi([Card(processes=[(other, "C", "sglang", "N/A")])])
    lay(root, f"proc/{other}/cgroup", f"0::/system.slice/docker-{'c' * 64}.scope\n")
    ours = described(smi, root, "c" * 64)
    assert ours["processes"] == [
        {"gpu": 0, "pid": other, "name": "sglang", "memory_mib": None, "own": True}
    ]
    assert gpu_health.judge(ours, Use()) == Verdict()
    for container in ("d" * 64, None):
        [warning] = gpu_health.judge(described(smi, root, container), Use()).warnings
        assert "an unknown amount of its memory" in warning


def test_what_draws_and_what_has_ended_is_in_nobodys_way(root: Path, other: int) -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    processes = [
        (other, "G", "/usr/lib/xorg/Xorg", "4 MiB"),
        (ended.pid, "C", "python3", "100 MiB"),
    ]
    assert described(NvidiaSmi([Card(processes=processes)]), root)["processes"] == []


KMSG = """4,1100,10423000,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module
3,1101,10424000,-;NVRM: Xid (PCI:0000:53:00): 79, pid='<unknown>', name=<unknown>, \
GPU has fallen off the bus.
 SUBSYSTEM=pci
3,1102,10425000,-;NVRM: Xid (PCI:0000:53:00): 13, pid=4242, name=python3, \
Graphics Exception: ESR 0x404490=0x80000002
3,1103,10426000,-;NVRM: Xid (PCI:0009:01:00): 13, pid=4243, name=python3, Graphics Exception
3,1104,10427000,-;NVRM: Xid (PCI:0000:aa:00): 154, \
GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)
"""


def test_xid_errors_are_counted_and_explained(root: Path) -> None:
    lay(root, "dev/kmsg", KMSG)
    smi = NvidiaSmi([Card(), Card(bus="00000009:01:00.0")])
    assert described(smi, root)["xid"] == [
        {"code": 13, "count": 2, "where": ["GPU 0", "GPU 1"]},
        {"code": 79, "count": 1, "where": ["GPU 0"]},
        {"code": 154, "count": 1, "where": ["the device at 0000:aa:00"]},
    ]
    program, bus, unknown = judged(smi, root).warnings
    assert (
        "Xid 13 since the host was started, 2 times, on GPU 0, GPU 1" in program
        and "program" in program
    )
    assert "Xid 79 since the host was started, once, on GPU 0" in bus and "reboot" in bus
    assert "Xid 154" in unknown and "catalog" in unknown


@pytest.mark.parametrize("code", [13, 31, 43, 45, 48, 63, 64, 74, 79, 94, 95])
def test_the_common_xid_errors_have_a_meaning(root: Path, code: int) -> None:
    lay(root, "dev/kmsg", f"3,1,1,-;NVRM: Xid (PCI:0000:53:00): {code}, x\n")
    [warning] = judged(NvidiaSmi(), root).warnings
    assert f"Xid {code} " in warning and "catalog" not in warning


def test_a_kernel_log_that_may_not_be_read_is_not_looked_at(root: Path) -> None:
    (root / "dev" / "kmsg").unlink()
    assert described(NvidiaSmi(), root)["xid"] is None
    assert judged(NvidiaSmi(), root) == Verdict()


@pytest.mark.parametrize(
    ("answer", "xid"),
    [
        (
            (0, "NVRM: Xid (PCI:0000:53:00): 31, pid=1\n", ""),
            [{"code": 31, "count": 1, "where": ["GPU 0"]}],
        ),
        ((1, "-- No entries --\n", ""), []),
        ((1, "", "No journal files were opened due to insufficient permissions."), None),
        (
            (
                1,
                "-- No entries --\n",
                "Hint: You are currently not seeing messages from other users and the system.",
            ),
            None,
        ),
        ((1, "", "Compiled without pattern matching support"), None),
    ],
)
def test_the_journal_is_asked_where_the_kernels_buffer_is_closed(
    root: Path, answer: Answer, xid: Any
) -> None:
    (root / "dev" / "kmsg").unlink()
    (root / "bin" / "journalctl").write_text("#!/bin/false\n")
    (root / "bin" / "journalctl").chmod(0o755)
    health = gpu_health.describe(
        gpu_health.parse(NvidiaSmi().xml()), lambda command: answer, None, str(root)
    )
    assert health["xid"] == xid


@pytest.fixture
def grace(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Grace host as NVIDIA advises it."""
    monkeypatch.setattr(gpu_health.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(os, "sysconf", lambda name: 65536)
    lay(root, "proc/sys/kernel/numa_balancing", "0\n")
    lay(
        root,
        "proc/cmdline",
        "root=UUID=1 ro init_on_alloc=1 init_on_alloc=0 numa_balancing=disable\n",
    )
    lay(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    return root


def test_a_grace_host_as_advised_is_left_alone(grace: Path) -> None:
    assert described(NvidiaSmi([GH200]), grace)["grace"] == {
        "page_size": 65536,
        "numa_balancing": False,
        "init_on_alloc": False,
        "transparent_hugepages": "madvise",
    }
    assert judged(NvidiaSmi([GH200]), grace) == Verdict()
    assert described(NvidiaSmi([Card()]), grace)["grace"] is None


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("proc/sys/kernel/numa_balancing", "1\n", "kernel.numa_balancing=0"),
        ("proc/cmdline", "ro init_on_alloc=1\n", "init_on_alloc=0"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n", "512 MiB"),
    ],
)
def test_each_piece_of_advice_for_grace_is_one_warning(
    grace: Path, path: str, text: str, words: str
) -> None:
    lay(grace, path, text)
    [warning] = judged(NvidiaSmi([GH200]), grace).warnings
    assert words in warning


def test_small_pages_are_advised_against_on_grace(
    grace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096)
    lay(grace, "sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
    [warning] = judged(NvidiaSmi([GH200]), grace).warnings
    assert "pages of 4 KiB" in warning and "64k kernel" in warning
    # Of other programs of the host (dorado#1377, falco#3954).
    assert "jemalloc" in warning and len(warning) < 400


def test_how_the_kernel_was_built_counts_where_its_command_line_says_nothing(grace: Path) -> None:
    lay(grace, "proc/cmdline", "ro\n")
    assert described(NvidiaSmi([GH200]), grace)["grace"]["init_on_alloc"] is None
    lay(
        grace, f"boot/config-{gpu_health.platform.release()}", "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y\n"
    )
    assert described(NvidiaSmi([GH200]), grace)["grace"]["init_on_alloc"] is True
    lay(
        grace,
        f"boot/config-{gpu_health.platform.release()}",
        "# CONFIG_INIT_ON_ALLOC_DEFAULT_ON is not set\n",
    )
    assert described(NvidiaSmi([GH200]), grace)["grace"]["init_on_alloc"] is False


def docker(info: object) -> DockerCli:
    def run(command: list[str]) -> Answer:
        assert command == ["docker", "info", "--format", "{{json .}}"]
        return 0, json.dumps(info), ""

    return DockerCli(run, "docker")


def test_a_missing_container_toolkit_says_what_to_install(root: Path) -> None:
    runtimes = {"io.containerd.runc.v2": {"path": "runc"}, "runc": {"path": "runc"}}
    problem = gpu_health.toolkit_problem(docker({"Runtimes": runtimes}), str(root))
    assert problem is not None
    assert all(
        word in problem
        for word in (
            "nvidia-container-toolkit",
            "nvidia-ctk runtime configure --runtime=docker",
            "restart docker",
        )
    )


def test_a_container_toolkit_is_known_by_docker_by_its_hook_or_by_its_devices(root: Path) -> None:
    for info in (
        {"Runtimes": {"nvidia": {"path": "nvidia-container-runtime"}, "runc": {"path": "runc"}}},
        {
            "Runtimes": {"runc": {}},
            "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}],
        },
    ):
        assert gpu_health.toolkit_problem(docker(info), str(root)) is None
    unasked = DockerCli(nobody, "docker")
    lay(root, "etc/cdi/nvidia.yaml", "cdiVersion: 0.5.0\n")
    assert gpu_health.toolkit_problem(unasked, str(root)) is None
    (root / "etc/cdi/nvidia.yaml").unlink()
    lay(root, "usr/bin/nvidia-container-runtime-hook", "")
    assert gpu_health.toolkit_problem(unasked, str(root)) is None


@pytest.mark.parametrize(
    "answer", [(1, "", "no daemon"), (0, "", ""), (0, "[]", ""), (1, "{}", ""), (0, "{}", "")]
)
def test_a_docker_that_does_not_say_is_not_held_against_the_host(
    root: Path, answer: Answer
) -> None:
    cli = DockerCli(lambda command: answer, "docker")
    assert gpu_health.toolkit_problem(cli, str(root)) is None


def test_a_process_of_another_user_that_cannot_be_seen_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    [process] = described(
        NvidiaSmi([Card(processes=[(4242, "C", "[Insufficient Permissions]", "5 MiB")])]), root
    )["processes"]
    assert process["own"] is False and process["name"] == "[Insufficient Permissions]"


# --- what makes a host slow


SLOW: dict[str, tuple[dict[str, Any], str]] = {
    "power": ({"power_limit": "350.00 W"}, "GPU 0 is limited to 350 W, below the default of 700 W"),
    "clocks": ({"clock": "1200 MHz"}, "GPU 0 is held to application clocks of 1200 MHz"),
    "ecc": ({"ecc": "Disabled"}, "GPU 0 is without ECC"),
    "lanes": ({"lanes": "8x"}, "GPU 0 has 8 of 16 PCIe lanes"),
    "generation": ({"generation": "1", "reasons": ()}, "of generation 1 under load"),
    "slowdown": ({"reasons": ("hw_thermal_slowdown",)}, "GPU 0 is slowed down now"),
    "persistence": ({"persistence": "Disabled"}, "GPU 0 is not in persistence mode"),
}


def slow(root: Path, card: Card, driver: str, refuse: bool) -> Verdict:
    smi, _warnings = asked(0, NvidiaSmi([card], driver=driver).xml())
    health = gpu_health.describe(smi, nobody, None, str(root))
    return gpu_health.judge(health, Use(refuse_slow=refuse))


@pytest.mark.parametrize("driver", ["525.60.13", "535.54.03", "580.105.08"])
@pytest.mark.parametrize("condition", SLOW)
def test_what_makes_a_host_slow_is_said_or_refused(root: Path, condition: str, driver: str) -> None:
    changes, words = SLOW[condition]
    for refuse in (False, True):
        verdict = slow(root, Card(**changes), driver, refuse)
        [said] = verdict.problems if refuse else verdict.warnings
        assert words in said and len(said) < 400
        assert not (verdict.warnings if refuse else verdict.problems)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"power_limit": "750.00 W"},
        {"power_limit": "N/A", "default_power_limit": "N/A"},
        {"clock": "Requested functionality has been deprecated"},
        # Links of idle GPUs fall back by themselves.
        {"generation": "1"},
        {"generation": "N/A", "newest_generation": "N/A", "lanes": "N/A", "most_lanes": "N/A"},
        {"lanes": "Unknown Error", "ecc": "N/A"},
        # Its link to the CPU is another one.
        {"addressing": "ATS", "lanes": "1x", "generation": "1", "reasons": ()},
    ],
    ids=["healthy", "more", "no limit", "no clocks", "idle", "no link", "broken", "coherent"],
)
def test_what_makes_no_host_slow_is_not_refused(root: Path, changes: dict[str, Any]) -> None:
    assert slow(root, Card(**changes), "580.105.08", refuse=True).problems == []


def test_a_broken_field_costs_that_field_only(root: Path) -> None:
    broken = Card(power_limit="[Unknown Error]", ecc="Disabled", lanes="8x")
    said = " ".join(slow(root, broken, "580.105.08", refuse=False).warnings)
    assert "limited to" not in said and "without ECC" in said and "8 of 16 PCIe lanes" in said


@pytest.mark.parametrize(
    ("governors", "said"),
    [
        ([], None),
        (["performance", "performance"], None),
        (["performance", "powersave\n"], "powersave"),
        (["", "ondemand"], "ondemand"),
    ],
    ids=["unknown", "fast", "one slow", "one unknown"],
)
def test_a_governor_that_saves_power_is_named(
    root: Path, governors: list[str], said: str | None
) -> None:
    for number, governor in enumerate(governors):
        folder = root / "sys/devices/system/cpu/cpufreq" / f"policy{number}"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(governor)
    problems = slow(root, Card(), "580.105.08", refuse=True).problems
    assert [said in problem for problem in problems if said] == ([True] if said else [])
    assert bool(problems) is bool(said)
