"""The report's page as text: its numbers, its groups, and what a report may lack. What a browser
says of it is in tests/browser.
"""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from ansible_collections.slice_bench.sglang.plugins.plugin_utils import (
    report_fleet,
    report_page,
    report_strips,
)
from jsonschema import ValidationError

from sgl_admin.contract import stages
from tests.browser import reports
from tests.contract import validators

VOID = {"meta", "link", "br", "hr", "img", "input", "base"}


class Page(HTMLParser):
    """The page's elements, with every open one closed in its turn; ``texts`` holds the words of
    each table cell and heading.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th", "h1", "h2", "h3", "h4"):
            self.texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.texts and {"td", "th", "h1", "h2", "h3", "h4"} & set(self.open):
            self.texts[-1] = " ".join(f"{self.texts[-1]} {data}".split())

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def rendered(**changes: Any) -> str:
    """The page of the example whose every host has these values."""
    report = validators.example("report")
    for host in report["hosts"]:
        host.update(changes)
    return report_page.render(report)


@pytest.mark.parametrize("count", [1, 2, 40, 200])
def test_a_fleet_keeps_the_contract(count):
    validators.validate_report(json.loads(json.dumps(reports.fleet(count))))


def test_hostile_report_keeps_the_contract():
    """Else the contract would already keep it from the page."""
    validators.validate_report(reports.hostile())


def test_what_was_chosen_for_the_operator_is_shown_with_its_reason():
    choice = {"arguments": ["--attention-backend", "flashinfer"], "reason": "no <flash_ops> here"}
    report = validators.example("report")
    for host in report["hosts"]:
        host["chosen"] = [choice]
    validators.validate_report(report)
    page = report_page.render(report)
    assert "Chosen for you, and why" in page
    assert "--attention-backend flashinfer: no &lt;flash_ops&gt; here" in page
    assert "Chosen for you" not in report_page.render(validators.example("report"))


@pytest.mark.parametrize("status", ["ok", "failed"])
def test_status_goes_with_the_hosts(status):
    with pytest.raises(ValidationError):
        validators.validate_report({**validators.example("report"), "status": status})


def test_stages_are_all_there_or_none():
    report = validators.example("report")
    report["hosts"][0]["stages"] = {}
    validators.validate_report(report)
    del report["hosts"][1]["stages"]["inductor"]
    with pytest.raises(ValidationError):
        validators.validate_report(report)


def test_names_are_the_contracts():
    host = validators.schema("report")["$defs"]["host"]["properties"]
    assert (
        report_page.STAGES
        == tuple(host["stages"]["properties"])
        == tuple(validators.schema("common")["$defs"]["stage_name"]["enum"])
    )
    assert report_page.CACHES == tuple(host["caches"]["properties"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (418, "6 min 58 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds, text):
    assert report_page.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2316, "2.3 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (734003200, "700 MiB"),
        (99.96 * 1024**3, "100 GiB"),
        (1024**3 - 1, "1.0 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_size(count, text):
    assert report_page.size(count) == text


def test_moment():
    assert report_page.moment("2026-11-05T07:02:60Z") == "5 Nov 2026, 07:02:60 UTC"
    assert report_page.moment(None) == "unknown"


@pytest.mark.parametrize(
    ("span", "labels"),
    [
        (0.35, ["0", "0.1 s", "0.2 s", "0.3 s"]),
        (42, ["0", "10 s", "20 s", "30 s", "40 s"]),
        (170, ["0", "30 s", "1 min", "1 min 30 s", "2 min", "2 min 30 s"]),
        (1754.6, ["0", "5 min", "10 min", "15 min", "20 min", "25 min"]),
        (9000, ["0", "30 min", "1 h", "1 h 30 min", "2 h", "2 h 30 min"]),
        (300000, ["0", "24 h", "48 h", "72 h"]),
    ],
)
def test_ticks_of_the_time_axis(span, labels):
    assert [report_page.tick_label(at) for at in report_page.ticks(span)] == labels


@pytest.mark.parametrize("span", [10.0**power for power in range(-1, 9)])
def test_ticks_are_few(span):
    found = report_page.ticks(span)
    assert 2 <= len(found) <= report_page.MOST_TICKS + 1 and found[-1] <= span


def test_same_sentence_is_told_once():
    report = reports.fleet(40)
    hosts = report["hosts"]
    problems = report_page.findings(hosts, report_page.problems_of)
    assert [len(problem.hosts) for problem in problems] == [4, 3, 1, 1]
    assert (
        problems[0].hosts == [8, 17, 26, 35]
        and problems[0].task == "Warm the caches and prove the metrics"
    )
    assert problems[2].text.startswith("No METRICS_READY: Prometheus was down")
    assert problems[
        3
    ].text == "its batch was not begun, because hosts before it failed" and problems[3].hosts == [
        39
    ]
    page = report_page.render(report)
    listed = page.split('<ul class="findings problem">')[1].split("</ul>")[0]
    assert listed.count(hosts[8]["problem"]) == 1 and all(
        hosts[number]["host"] in listed for number in (8, 17, 26, 35)
    )


def test_failed_stage_of_a_host_without_a_sentence_is_told():
    host = validators.example("report")["hosts"][1]
    host["problem"] = None
    assert [problem[0].split(":")[0] for problem in report_page.problems_of(host)] == [
        "moe_tune",
        "No METRICS_READY",
    ]


def test_timeline():
    report = validators.example("report")
    chart = report_page.timeline(report)
    assert chart["names"] == ["preflight", "host_dirs", "model", "image", "stack", "provider_prep"]
    assert [[bar["colour"] for bar in row] for row in chart["rows"]] == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4, 5],
        [0],
    ]
    bars = [bar for row in chart["rows"] for bar in row]
    assert all(
        bar["x"] >= 0 and bar["width"] > 0 and bar["x"] + bar["width"] <= 100.1 for bar in bars
    )
    assert chart["rows"][0][5]["width"] == pytest.approx(100 * 1610.6 / 1754.6)


def test_steps_beyond_the_colours_share_the_last():
    report = validators.example("report")
    report["hosts"][0]["steps"] = [
        {"name": f"role {n}", "start_s": n, "duration_s": 1, "status": "ok"} for n in range(10)
    ]
    chart = report_page.timeline(report)
    assert [bar["colour"] for bar in chart["rows"][0]] == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]
    page = report_page.render(report)
    assert set(re.findall(r'class="step-(\d+)"', page)) <= set(
        re.findall(r"^\.step-(\d+) ", page, re.MULTILINE)
    )


def cells(**released: str) -> list[str]:
    """A host's row by its stages. The example has a later stage as the one before it."""
    row: list[str] = []
    for name in stages.NAMES:
        row.append(released[name] if name in released else row[-1])
    return row


def test_page_says_what_the_report_says():
    texts = Page(report_page.render(validators.example("report"))).texts
    assert texts[0] == "METRICS_READY 1 of 3"
    start = texts.index("Took") + 1
    assert texts[start : start + 6 + 2 * len(stages.NAMES)] == [
        *("gh200-01 ok", "ready 48 of 48 tokens"),
        *cells(
            deep_gemm="ok 6 min 58 s",
            moe_tune="ok 15 min 38 s",
            flashinfer="no-op 0.4 s valid signature",
            inductor="ok 3 min 35 s",
        ),
        *("29 min 13 s", "gh200-02 failed", "not ready 0 of 48 tokens"),
        *cells(
            deep_gemm="ok 7 min 2 s",
            moe_tune="error 4 min 5 s tuner failed",
            flashinfer="skipped requested",
            inductor="ok 2 min 49 s",
        ),
        "17 min 2 s",
    ]
    assert {"0 B → 700 MiB", "112 MiB as before", "1.1 KiB → 2.3 KiB", "empty"} <= set(texts)


def test_what_the_moe_configurations_bring_is_shown_for_each_host():
    report = reports.fleet(3)
    report["hosts"][1]["moe_gain"] = None
    text = report_page.render(report)
    gain = report["hosts"][0]["moe_gain"]
    assert text.count("MoE kernels: ") == 2 and gain["summary"].replace("'", "&#39;") in text
    assert text.count('<meter min="0" max="1.25"') == 2 * len(gain["rows"])


def test_where_the_servers_start_went_is_shown_with_what_would_shorten_it():
    report = reports.fleet(2)
    report["hosts"][1].update(server_start=None, start_advice=[])
    text = report_page.render(report)
    start = report["hosts"][0]["server_start"]
    assert text.count("Server ready in 53 s") == 1
    for one in start["phases"]:
        assert f'<th scope="row">{one["phase"].replace("_", " ")}</th>' in text
    assert text.count('<meter min="0" max="1" ') == len(start["phases"]) + 1
    [advice] = report["hosts"][0]["start_advice"]
    assert text.count(" would shorten it: ") == 1 and advice["measured"] in text
    assert ">600.8</td>" in text and ">nearest</td>" in text


def test_page_can_be_heard():
    page = Page(report_page.render(reports.fleet(3)))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1 and len(page.all("table")) == 3 + 6 * 3
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert all(
        "aria-hidden" in attributes or attributes.get("role") == "img"
        for attributes in page.all("svg")
    )
    ids = [attributes["id"] for _tag, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [
        attributes["aria-labelledby"]
        for _tag, attributes in page.elements
        if "aria-labelledby" in attributes
    ]
    hrefs = [(attributes["href"] or "") for attributes in page.all("a", "use")]
    assert {href[1:] for href in hrefs if href.startswith("#")} | set(named) <= set(ids)


def test_page_holds_no_script_and_names_nothing_to_load():
    page = Page(report_page.render(reports.hostile()))
    assert page.all("script", "link", "img", "iframe", "object", "base", "form") == []
    assert [
        name
        for _tag, attributes in page.elements
        for name in attributes
        if name.startswith("on") or name == "src"
    ] == []


@pytest.mark.parametrize(
    "changes",
    [
        dict.fromkeys(
            (
                "run_id",
                "prep_id",
                "metrics_ready",
                "model",
                "device",
                "versions",
                "telemetry_probe",
                "caches",
            )
        ),
        dict.fromkeys(("started_at", "finished_at", "duration_s")),
        {"stages": {}, "steps": [], "warnings": []},
        {"caches": {}},
        {
            "caches": {
                "triton": dict.fromkeys(
                    ("before_bytes", "after_bytes", "before_files", "after_files")
                )
            }
        },
        {
            "caches": {
                "triton": {
                    "before_bytes": 2048,
                    "after_bytes": 1024,
                    "before_files": 2,
                    "after_files": 1,
                }
            }
        },
        {"versions": {"deep_gemm": None}},
        {"links": dict.fromkeys(("prometheus", "prep_result", "manifest", "log"))},
    ],
)
def test_what_is_unknown_is_left_out_or_said(changes):
    page = rendered(**changes)
    Page(page)
    assert "None" not in page


def test_run_of_no_time_and_no_host():
    report = {
        **validators.example("report"),
        "hosts": [],
        "status": "failed",
        "metrics_ready": {"ready": 0, "total": 0},
        "duration_s": 0.0,
    }
    validators.validate_report(report)
    assert "METRICS_READY</span> 0 of 0" in report_page.render(report)


def test_fields_added_later_are_ignored():
    report = validators.example("report")

    def add(value: Any) -> None:
        for inner in (
            list(value.values())
            if isinstance(value, dict)
            else value
            if isinstance(value, list)
            else []
        ):
            add(inner)
        if isinstance(value, dict):
            value["added_later"] = "text"

    add(report)
    assert "added_later" not in report_page.render(report).replace("added_later text", "")


def test_check_mode_is_said():
    report = validators.example("report")
    assert "Check mode" not in report_page.render(report)
    assert "Check mode" in report_page.render({**report, "check_mode": True})


def test_half_a_character_can_be_written():
    assert "gh200-?" in rendered(host="gh200-\udcff")


# --- the fleet ------------------------------------------------------------------------------------


def fleet_texts(report: dict[str, Any]) -> list[str]:
    """The words of the cells of the fleet's table, without its head."""
    texts = Page(report_page.render(report)).texts
    return texts[
        texts.index("Not ready because") + 1 : texts.index(
            "Problems" if "Problems" in texts else "Stages"
        )
    ]


def test_the_fleet_is_told_group_by_group():
    report = reports.fleet(14)
    name = [host["host"] for host in report["hosts"]]
    told = fleet_texts(report)
    assert len(told) == 3 * 6
    assert told[:6] == [
        "aaaaaaaa 1 × NVIDIA GH200 480GB Qwen3-Next-80B-A3B-Thinking-FP8",
        f"6 hosts {' , '.join(name[0:12:2])}",
        "4 of 6",
        f"{name[0]} deep_gemm 4 min 53 s, moe_tune 10 min 57 s, inductor 2 min 30 s",
        (
            f"{' , '.join(name[2:10:2])} moe_tune, inductor from {name[0]} {name[10]} moe_tune,"
            " inductor from the controller"
        ),
        (
            f"{name[4]} No METRICS_READY: {report['hosts'][4]['telemetry_probe']['reason']}"
            f" {name[8]} {report['hosts'][8]['problem']}"
        ),
    ]
    assert [told[6].split()[0], told[8], told[11]] == ["bbbbbbbb", "6 of 6", ""]
    assert told[12:] == [
        "not known",
        f"{name[12]} , {name[13]}",
        "0 of 2",
        "no host",
        "no host",
        (
            f"{name[12]} {report['hosts'][12]['problem']} {name[13]} its batch was not begun,"
            " because hosts before it failed"
        ),
    ]


@pytest.mark.slow
def test_two_hundred_hosts_are_a_table_of_three_rows():
    report = reports.fleet(200)
    found = report_page.groups(report["hosts"])
    assert [len(group.hosts) for group in found] == [92, 92, 16] and sum(
        group.ready for group in found
    ) == 162
    page = report_page.render(report)
    assert "METRICS_READY</span> 162 of 200" in page and len(page) < 3_000_000
    table = page.split('<section aria-labelledby="fleet">')[1].split("</section>")[0]
    assert table.count("<tr>") == 4
    assert re.findall(r"<summary>(\d+) hosts</summary>", table) == [
        "92",
        "73",
        "18",
        "10",
        "92",
        "73",
        "18",
        "11",
        "16",
        "15",
    ]
    assert all(f">{host['host']}<" in table for host in report["hosts"])


def test_where_all_work_by_themselves_what_they_did_is_told_once_without_times():
    report = reports.fleet(7)
    for number, host in enumerate(report["hosts"]):
        host.update(group="a" * 16, work_s={"moe_tune": 900.0 + number, "inductor": 60.0})
        host["shared"]["made"] = ["moe_tune", "inductor"] if number else ["inductor"]
    (group,) = report_page.groups(report["hosts"])
    assert group.makers == [
        ("moe_tune failed, inductor", [0]),
        ("moe_tune, inductor", [1, 2, 3, 4, 5, 6]),
    ]


def test_what_went_on_from_a_part_is_told_and_a_failure_with_its_time():
    report = reports.fleet(2)
    first, second = report["hosts"]
    first["shared"]["made"].remove("moe_tune")
    second["group"] = first["group"]
    second["shared"]["took"] = [
        {
            **reports._shared("moe_tune"),
            "finished": False,
            "from": "controller:/x",
            "from_host": first["host"],
        },
        {
            **reports._shared("moe_tune"),
            "stage": None,
            "finished": None,
            "from": "registry.example.com/x@sha256:0",
            "from_host": None,
        },
    ]
    (group,) = report_page.groups(report["hosts"])
    assert (
        group.makers[0][0]
        == "deep_gemm 4 min 53 s, moe_tune failed after 10 min 57 s, inductor 2 min 30 s"
    )
    assert group.takers == [(f"moe_tune (part) from {first['host']}; image from the registry", [1])]


def test_one_host_is_no_fleet():
    page = report_page.render(reports.fleet(1))
    assert 'id="fleet"' not in page and "Shared" in page, "what it gave is told all the same"


def test_a_report_of_an_older_release_has_its_page():
    older = validators.example("report")
    assert "fleet" not in older
    page = report_page.render(older)
    assert (
        'id="fleet"' not in page and "METRICS_READY</span> 1 of 3" in page and "Shared" not in page
    )


def test_a_host_that_was_stopped_is_not_told_as_ok():
    page = report_page.render(reports.fleet(10))
    last = page.split('<details id="host-10"')[1]
    assert (
        "not finished</span>" in last.split("</summary>")[0] and "its batch was not begun" in last
    )
    assert report_page.standing(reports.fleet(10)["hosts"][9]) == "not finished"
    Page(page)


# --- what stage perf measured of the fleet --------------------------------------------------------


def compared(*values: float, measurement: str = "gemm_bf16", **probe: Any) -> dict[str, Any]:
    """A report of hosts of one kind with these values of a measurement."""
    report = reports.fleet(len(values))
    for number, (host, value) in enumerate(zip(report["hosts"], values, strict=True)):
        measured = {"name": measurement, "value": value, "unit": "", "spread_percent": None}
        host.update(host=f"h{number}", warnings=[])
        host["perf"] = {**reports._perf(0), **probe, "measurements": [measured]}
    report["fleet"] = report_fleet.fleet(report["hosts"])
    return report


def strips_of(report: dict[str, Any]) -> list[report_strips.Strip]:
    found = report_strips.measured(report["hosts"], report["fleet"])
    return [strip for measured in found for strip in measured.strips]


def speed(report: dict[str, Any]) -> str:
    """The part of the page; empty where it has none."""
    rest = report_page.render(report).partition('<section aria-labelledby="speed">')[2]
    Page(section := rest.partition("</section>")[0])
    return section


def words_of(markup: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", re.sub("<title>.*?</title>", "", markup)).split())


@pytest.mark.parametrize("count", [2, 3, 4, 40, 200])
def test_every_measured_host_has_one_dot_in_each_strip(count):
    report = reports.fleet(count)
    section = speed(report)
    values = [
        f"{host['host']}: "
        for host in report["hosts"]
        for each in (host["perf"] or {"measurements": []})["measurements"]
    ]
    alone = [strip for strip in strips_of(report) if len(strip.hosts) == 1]
    named = section.count("<li title=")
    assert section.count("<title>") == section.count('<circle class="dot" cx="') - 1
    assert section.count("<title>") + named + len(alone) == len(values)
    assert named == (0 if count < 4 else 2 if count == 4 else 11)


@pytest.mark.parametrize(
    ("values", "said", "medians"),
    [
        ([770.0] * 2, "2 hosts, 770 TFLOP/s", 0),
        ([770.0, 771.0, 772.0], "3 hosts, 770 to 772 TFLOP/s", 0),
        ([770.0, 771.0, 772.0, 774.0], "4 hosts, 770 to 774 TFLOP/s, median 771.5", 1),
    ],
    ids=["alike", "three", "four"],
)
def test_a_median_takes_four_hosts(values, said, medians):
    section = speed(compared(*values))
    assert f"NVIDIA GH200 480GB : {said}" in words_of(section)
    # One of the legend too.
    assert section.count('class="median"') == 2 * medians
    reason = "a reference takes 4 measured hosts of one kind, and the fleet has"
    without = f"No host is compared: {reason} {len(values)}."
    assert (without in words_of(section)) is not bool(medians)


def test_one_host_has_a_line_of_numbers():
    section = speed(reports.fleet(1))
    assert words_of(section.partition("</h2>")[2]) == (
        "gemm_bf16 763.7 TFLOP/s gemm_fp8 1374 TFLOP/s hbm_copy 3482 GB/s h2d 54.5 GB/s"
        " decode 169.6 tokens/s first_token 31.1 ms"
    )
    assert "<svg" not in section


def test_one_host_of_its_kind_has_a_line_of_numbers_among_the_strips():
    report = reports.fleet(7)
    section = words_of(speed(report))
    assert "NVIDIA L40S : gh200-06.rack1.lab , 182.2 TFLOP/s" in section
    assert "NVIDIA GH200 480GB : 5 hosts, 763.7 to 775.1 TFLOP/s" in section
    assert [len(strip.hosts) for strip in strips_of(report)][:3] == [5, 1, 1]


def test_hosts_that_are_all_of_different_kinds_need_no_picture_and_no_legend():
    report = compared(770.0, 640.0, 181.0)
    for number, host in enumerate(report["hosts"]):
        host["perf"]["device_name"] = f"GPU {number}"
    section = speed(report)
    assert "<svg" not in section and "GPU 1 : h1 , 640 TFLOP/s" in words_of(section)


@pytest.mark.parametrize(
    ("measurement", "values", "named", "side"),
    [
        ("gemm_bf16", [770, 772, 700, 771, 650, 773], ["fail h4 650", "warn h2 700"], "left"),
        ("first_token", [30, 30.1, 32, 29.9, 36, 30], ["fail h4 36", "warn h2 32"], "right"),
    ],
)
def test_slow_hosts_are_named_with_a_mark_of_another_shape(measurement, values, named, side):
    section = speed(compared(*values, measurement=measurement))
    rows = re.findall("<li title=.*?</li>", section)
    assert [words_of(row) for row in rows] == named
    assert [re.findall(r'class="mark (\w+)".*?#mark-(\w+)', row) for row in rows] == [
        [("bad", "bad")],
        [("warn", "warn")],
    ]
    assert f"margin-{side}: calc(0.0% - 7px)" in rows[0]
    legend = "a host median of its kind slower than its kind much slower than its kind"
    assert legend in words_of(section)
    assert section.count("the median of 6 hosts") == 2


def test_of_many_slow_hosts_the_slowest_have_lines_and_all_are_named():
    values = [770 + number % 9 for number in range(60)] + [600 + 5 * number for number in range(20)]
    report = compared(*values)
    (strip,) = strips_of(report)
    assert [dot.value for dot in strip.named] == [600 + 5 * number for number in range(8)]
    section = speed(report)
    assert re.findall('<g class="(.+?)"><title>', section) == ["bad"] * 11 + ["warn"]
    listed = section.partition("Also slow: ")[2]
    assert "12 hosts" in listed and re.findall(">(h[0-9]+)<", listed) == [
        f"h{number}" for number in range(68, 80)
    ]


def test_hosts_of_other_servers_have_strips_of_their_own():
    report = compared(*[171.0] * 6, measurement="decode")
    for number, host in enumerate(report["hosts"]):
        host["perf"]["subject"] = f"{number % 2}" * 16
    assert [strip.kind for strip in strips_of(report)] == [
        "NVIDIA GH200 480GB, Qwen3-Next-80B-A3B-Thinking-FP8, 00000000",
        "NVIDIA GH200 480GB, Qwen3-Next-80B-A3B-Thinking-FP8, 11111111",
    ]


def test_names_of_hosts_and_devices_are_text_in_a_strip():
    report = compared(770, 772, 700, 771, 773, device_name=reports.HOSTILE)
    for host in report["hosts"]:
        host["host"] += reports.HOSTILE
    report["fleet"] = report_fleet.fleet(report["hosts"])
    page = Page(speed(report))
    assert page.all("script", "img") == [] and len(page.all("circle")) == 1 + 4
    assert [each["title"] for each in page.all("li") if "title" in each] == [
        report["fleet"]["perf"]["outliers"][0]["sentence"]
    ]


@pytest.mark.parametrize("is_older", [False, True], ids=["none measured", "older release"])
def test_without_measurements_there_is_no_picture(is_older):
    report = reports.fleet(3)
    for host in report["hosts"]:
        host.update(perf=None)
    report["fleet"] = report_fleet.fleet(report["hosts"])
    if is_older:
        del report["fleet"]["perf"]
    assert speed(report) == "" and "#speed" not in report_page.render(report)
    assert "#speed" in report_page.render(reports.fleet(3))


@pytest.mark.parametrize(
    "values",
    [
        [770.0] * 200,
        [770 + (number * 37 % 100) / 50 for number in range(200)],
        [770 + number / 5 for number in range(40)],
        [77.0, *(770 + number / 10 for number in range(39))],
        [1.0, 1e9, 1e-9, 5.0],
    ],
    ids=["alike", "near", "spread", "one far off", "wild"],
)
def test_dots_are_apart_as_far_as_lanes_allow(values):
    (strip,) = strips_of(compared(*values))
    places = [(dot.x, y) for dot, y in strip.swarm] + [(dot.x, 0) for dot in strip.named]
    assert len(places) == len(values)
    assert all(0 <= x <= 100 and 0 <= y <= strip.height for x, y in places)
    assert strip.axis.low <= min(values) and max(values) <= strip.axis.high
    lanes = {y for _dot, y in strip.swarm}
    assert len(lanes) <= report_strips.MOST_LANES
    near = [
        (first, second)
        for y in lanes
        for first, second in itertools.pairwise(dot.x for dot, at in strip.swarm if at == y)
        if second - first < report_strips.DOT_WIDTH
    ]
    assert not near or len(lanes) == report_strips.MOST_LANES


def test_hosts_that_are_alike_are_close_together():
    """Else an axis from the smallest to the largest would make noise look like slow hosts."""
    (strip,) = strips_of(compared(770, 770.5, 771, 771.5))
    places = [dot.x for dot, _y in strip.swarm]
    assert max(places) - min(places) < 3 and 48 < min(places)
