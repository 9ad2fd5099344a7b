"""What nvidia-smi, the kernel's log and Docker say of GPUs: whatever it is, it is described or
refused in a sentence.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any
from unittest import mock

from ansible_collections.slice_bench.sglang.plugins.module_utils import _gpu_health as gpu_health
from ansible_collections.slice_bench.sglang.plugins.module_utils._docker_cli import DockerCli
from ansible_collections.slice_bench.sglang.plugins.module_utils._gpu_health import SmiError, Use
from hypothesis import strategies as st

from tests.doubles.nvidia_smi import Card, NvidiaSmi
from tests.fuzz.fuzzing import damaged, documents, files_of, fuzz, mostly, one_line, reached, text

CARDS = [
    Card(processes=[(1, "C", "/usr/bin/python3 a", "100 MiB")]),
    Card(
        name="NVIDIA GH200 480GB",
        uuid="GPU-2",
        bus="00000009:01:00.0",
        addressing="ATS",
        mig="Enabled",
        uncorrectable=3,
    ),
]
WORDS = [
    "Yes",
    "Enabled",
    "Disabled",
    "Active",
    "GPU is lost",
    "N/A",
    "Not Found",
    "-1 MiB",
    "1e9",
    "9" * 5000,
    "\u0663 MiB",
    "ATS",
    "Reset",
]


@st.composite
def answers(draw: st.DrawFn) -> str:
    """The XML of two GPUs, with up to three of its elements renamed, dropped, doubled, or with
    another text; or other bytes.
    """
    smi = NvidiaSmi(CARDS, driver=draw(st.sampled_from(["535.183.01", "570.148.08", "580.105.08"])))
    log = ET.fromstring(smi.xml())  # noqa: S314
    for _ in range(draw(st.integers(0, 3))):
        parent = draw(st.sampled_from([element for element in log.iter() if len(element)]))
        child = draw(st.sampled_from(list(parent)))
        match draw(st.sampled_from(["text", "text", "text", "drop", "double", "rename", "move"])):
            case "text":
                child.text = draw(
                    st.sampled_from(WORDS)
                    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
                )
            case "drop":
                parent.remove(child)
            case "double":
                parent.extend([child] * draw(st.sampled_from([2, 100])))
            case "rename":
                child.tag = draw(
                    st.sampled_from(["gpu", "processes", "uuid", "a_reason_", "uncorrectable"])
                )
            case _:
                log.append(child)
                if parent is not log:
                    parent.remove(child)
    whole = st.just(
        b'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n'
        + ET.tostring(log, "utf-8")
    )
    # As Ansible hands on a program's output.
    return draw(damaged(whole)).decode(errors="surrogateescape")


SICK = [
    Card(mig="Enabled"),
    Card(memory="GPU is lost", uuid="GPU-2", bus="00000000:54:00.0", fabric_state="In Progress"),
    Card(
        name="NVIDIA GH200 480GB",
        uuid="GPU-3",
        bus="00000009:01:00.0",
        compute_mode="Prohibited",
        persistence="Disabled",
        uncorrectable=4,
        row_failure="Yes",
        processes=[(1, "C", "/usr/bin/python3 a", "100 MiB")],
    ),
]
ANSWER = NvidiaSmi(SICK, driver="570.148.08", cuda="12.8").xml()
# What is said of SICK, and the one place that says it.
SAID = {
    "GPU 0 is in MIG mode": "<current_mig>Enabled</current_mig>",
    "GPU 1 is lost": "<total>GPU is lost</total>",
    "GPU 1 is not in the NVLink fabric": "<fabric><state>In Progress</state>",
    "GPU 2 is in compute mode Prohibited": "<compute_mode>Prohibited</compute_mode>",
    "GPU 2 is not in persistence mode": "<persistence_mode>Disabled</persistence_mode>",
    "GPU 2 had 4 uncorrectable": ANSWER[
        ANSWER.rindex("<volatile>") : ANSWER.rindex("</volatile>") + len("</volatile>")
    ],
    "GPU 2 is damaged, a row remap failed": "<remapped_row_failure>Yes</remapped_row_failure>",
    "too old for the image": "<cuda_version>12.8</cuda_version>",
    "GPU 2 is in use by another process": ANSWER[
        ANSWER.rindex("<process_info>") : ANSWER.rindex("</process_info>")
    ],
    "of different kinds": "<product_name>NVIDIA GH200 480GB</product_name>",
}
# An element, or a part of one, or several of a line; what comes in its place.
SPANS = st.sampled_from(ANSWER.splitlines()).flatmap(
    lambda line: st.tuples(
        st.just(ANSWER.index(line)), st.integers(0, len(line)), st.integers(0, 60), st.just(line)
    )
)
RUBBISH = st.text(st.sampled_from("<>/&\"' =!?;xyz\0\x07\x1b\ufffd\ud800"), max_size=8)


@fuzz(deep=0.8, span=SPANS, rubbish=RUBBISH)
def test_what_is_removed_or_garbled_costs_only_what_it_said(
    span: tuple[int, int, int, str], rubbish: str
) -> None:
    first, offset, length, line = span
    start, end = first + offset, min(first + offset + length, first + len(line))
    garbled = ANSWER[:start] + rubbish + ANSWER[end:]
    kept = {
        words
        for words, place in SAID.items()
        if end <= ANSWER.rindex(place) or ANSWER.rindex(place) + len(place) <= start
    }
    smi, warnings = gpu_health.ask("nvidia-smi", lambda command: (0, garbled, ""))
    with mock.patch.object(gpu_health, "_kernel_log", lambda run, root: None):
        health = gpu_health.describe(smi, lambda command: (0, "", ""))
    verdict = gpu_health.judge(health, Use(tp=2, image_cuda="13.0"))
    text = "\n".join([*verdict.problems, *verdict.warnings])
    assert [words for words in kept if words not in text] == []
    # Less than all is never said without a word of why.
    assert warnings or all(words in text for words in SAID) or not rubbish.strip()
    reached()


ADDRESSES = (
    st.sampled_from(["PCI:0000:53:00", "0009:01:00", "PCI:0000:aa:00", "", "...", "\0"]) | text()
)
LINES = st.builds(
    "3,1,1,-;NVRM: Xid ({}): {}, pid=1".format,
    ADDRESSES,
    st.integers(0, 200) | st.sampled_from(["79", "99999", "", "x"]),
)


@fuzz(
    deep=0.4,
    answer=answers(),
    code=mostly(st.just(0), st.sampled_from([1, 9, 14, 255]), 92),
    error=text(),
    log=st.none() | st.lists(LINES, max_size=4).map("\n".join),
    files=st.just("")
    | st.sampled_from(["0", "1", "[always] madvise", "init_on_alloc=", "docker-" + "c" * 64])
    | text(),
    machine=st.sampled_from(["aarch64", "x86_64"]),
    use=st.builds(
        Use,
        st.integers(1, 8),
        st.none() | st.sampled_from(["0", "1", "0,1", "GPU-2", ",", "7"]) | text(),
        st.none() | st.sampled_from(["13.0", "12.8", "99", "14.0.1"]) | text(),
        st.sampled_from(["", "cuda>=13.0 brand=tesla,driver>=535,driver<536"]) | text(),
    ),
)
def test_gpus_are_described_and_judged_or_refused_in_a_sentence(
    answer: str, code: int, error: str, log: str | None, files: str, machine: str, use: Use
) -> None:
    try:
        smi, warnings = gpu_health.ask("nvidia-smi", lambda command: (code, answer, error))
    except SmiError as refusal:
        one_line(str(refusal))
        return
    assert code == 0 or warnings
    for warning in warnings:
        one_line(warning)
    reached()
    with (
        mock.patch.object(gpu_health, "_kernel_log", lambda run, root: log),
        mock.patch.object(gpu_health, "_read", lambda *path: files.strip()),
        mock.patch.object(gpu_health.platform, "machine", lambda: machine),
    ):
        health = gpu_health.describe(smi, lambda command: (0, "", ""), "c" * 64)
    json.dumps(health, allow_nan=False).encode()
    verdict = gpu_health.judge(health, use)
    for message in [*verdict.problems, *verdict.warnings]:
        one_line(message)
    shown = [gpu for gpu in health["gpus"] if gpu["mig"]]
    if shown and not use.visible:
        assert any("MIG" in problem for problem in verdict.problems)


@fuzz(
    deep=0.3,
    printed=files_of({"Runtimes": {"nvidia": {"path": "x"}, "runc": {}}}).map(
        lambda content: content.decode(errors="surrogateescape")
    ),
)
def test_a_container_toolkit_is_missed_only_where_docker_names_its_runtimes(printed: str) -> None:
    def run(command: list[str]) -> tuple[int, str, str]:
        return 0, printed, ""

    with mock.patch.object(gpu_health.shutil, "which", lambda name: None):
        problem = gpu_health.toolkit_problem(DockerCli(run, "docker"), "/nowhere")
    if problem is not None:
        one_line(problem)
        assert not any(name.startswith("nvidia") for name in json.loads(printed)["Runtimes"])
    reached()


@fuzz(
    deep=0.5,
    inspected=st.dictionaries(
        st.just("Config"), st.dictionaries(st.just("Env"), documents("CUDA_VERSION=13.0"))
    ),
)
def test_an_images_environment_is_read_or_not(inspected: dict[str, Any]) -> None:
    version, requires = gpu_health.image_cuda(inspected)
    reached()
    assert version is None or isinstance(version, str)
    assert isinstance(requires, str)
