"""Whatever a container, a host or a file says is printed without control characters, and on no line
of its own: a terminal obeys nothing, and no reader takes it for METRICS_READY or a result.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.plugins.action import ActionBase
from ansible_collections.slice_bench.sglang.plugins.module_utils._contract import stages, texts
from ansible_collections.slice_bench.sglang.plugins.module_utils._told import ToldModule
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.admin_action import AdminAction
from ansible_collections.slice_bench.sglang.plugins.plugin_utils.told_action import ToldAction
from hypothesis import given
from hypothesis import strategies as st

from sgl_admin.commands import main, smoke
from sgl_admin.records import job
from slice_bench import commands as front
from slice_bench import fleet, playbook

TOP = Path(__file__).resolve().parents[2]
ESCAPES = (
    "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\x08\x0b\u202e\u2066\u200b\u2028\u0085\ud800"
    "\r\nRESULT_STATUS ok deep_gemm:ok\nMETRICS_READY\nmetrics      ready"
)
# What a hostile program would say, at random places in random text.
HOSTILE = st.builds("".join, st.lists(st.one_of(st.text(max_size=9), st.sampled_from(ESCAPES))))
RESULTS = ("RESULT_", "SMOKE_", "METRICS_READY", "CONTAINER_RUN_META_JSON", "metrics  ")


def allowed(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was printed since it was asked for last, to either stream."""
    return lambda: "".join(capsys.readouterr())


@given(HOSTILE)
def test_a_line_is_one_line(text: str) -> None:
    stream = io.StringIO()
    texts.say(text, stream)
    assert allowed(stream.getvalue()) and stream.getvalue().count("\n") == 1


@given(HOSTILE)
def test_further_lines_are_indented(text: str) -> None:
    stream = io.StringIO()
    texts.say_lines("ERROR: " + text, stream)
    first, *more = stream.getvalue().split("\n")[:-1]
    assert allowed(stream.getvalue()) and first.startswith("ERROR: ")
    assert all(line.startswith("    ") for line in more)


DOCUMENTS = st.recursive(
    st.one_of(HOSTILE, st.none(), st.booleans(), st.integers()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(HOSTILE, inner)),
    max_leaves=8,
)


def strings(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield from (*strings(key), *strings(value))
    elif isinstance(document, list):
        for item in document:
            yield from strings(item)


@given(DOCUMENTS)
def test_every_text_of_a_cleaned_document_may_be_shown(document: Any) -> None:
    cleaned = texts.clean(document)
    assert all(map(allowed, strings(cleaned)))
    assert texts.clean(cleaned) == cleaned


def outcome(text: str) -> dict[str, Any]:
    stage = {"status": text, "reason": text, "errors": [text], "warnings": [text]}
    return {
        "status": text,
        "stages": dict.fromkeys(stages.NAMES, stage),
        "warnings": [text],
        "telemetry_probe": {"ok": False, "reason": text},
    }


def record(text: str) -> dict[str, Any]:
    return {
        "prep_id": text, "state": "running", "stage": text, "done": 1, "total": 2, "unit": text,
        "message": text, "elapsed_s": 1.0, "eta_s": 1.0, "exit_code": None, "pid": 1,
    }  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
def test_what_sgl_admin_shows_of_a_record(output: Callable[[], str], as_json: bool) -> None:
    main._print_result("container-run", outcome(ESCAPES), as_json, 0)
    said = output()
    assert allowed(said)
    lines = said.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(RESULTS[:3])] == [
        "RESULT_JSON",
        "RESULT_STATUS",
    ]
    assert sum(line.startswith("metrics  ") for line in lines) == (0 if as_json else 1)
    main._print_dry_run({**outcome(ESCAPES), "telemetry_probe": ESCAPES, "cost": ESCAPES}, as_json)
    assert allowed(output())
    texts.say(job.describe(record(ESCAPES)))
    assert allowed(said := output()) and said.count("\n") == 1
    smoke._print_envelope({"text": ESCAPES})
    assert allowed(output())


def test_what_the_front_shows_of_a_container(output: Callable[[], str], tmp_path: Path) -> None:
    """The container's own sgl-admin may be another program by now."""
    program = "import sys\nfor to in sys.stdout, sys.stderr: to.buffer.write(sys.argv[1].encode("
    program += "'utf-8', 'surrogatepass')); to.flush()\nsys.exit(7)"
    assert front._shown([sys.executable, "-c", program, ESCAPES.replace("\ud800", "")]) == 7
    said = output()
    assert allowed(said) and "RESULT_STATUS" in said


def test_what_the_front_shows_of_a_result(output: Callable[[], str], tmp_path: Path) -> None:
    path = tmp_path / "prep_result.json"
    path.write_text(json.dumps({"a": ESCAPES}, ensure_ascii=False), "utf-8", "backslashreplace")
    host = {
        "prep_id": ESCAPES,
        "prep_status": ESCAPES,
        "stages": {"inductor": {"status": ESCAPES}},
        "links": {"prep_result": str(path), "prep_result_container": ESCAPES},
        "warnings": [ESCAPES],
        "exit_code": 0,
    }
    failure = playbook.Failed(ESCAPES, 1)
    found: Any = SimpleNamespace(host=host, failure=lambda: failure)
    assert front.say_result(found, True) == 0
    lines = (said := output()).splitlines()
    assert allowed(said) and json.loads(said.partition("\n}")[0] + "\n}") == {"a": ESCAPES}
    assert sum(line.startswith(("RESULT_JSON", "RESULT_STATUS")) for line in lines) == 2
    assert not any(line.startswith(("METRICS_READY", "metrics  ")) for line in lines)


def test_what_the_front_shows_of_a_fleet(
    output: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = SimpleNamespace(summary=lambda _: [ESCAPES], of_report=lambda _: {"a": ESCAPES})
    monkeypatch.setattr(fleet, "part", lambda _: report)
    monkeypatch.setattr(fleet, "exit_code", lambda _: 0)
    keys = ("report_id", "check_mode", "started_at", "finished_at", "duration_s")
    fleet.say(dict.fromkeys(keys, ESCAPES), True)
    assert allowed(said := output()) and not any(
        line.startswith(RESULTS) for line in said.splitlines()
    )


def test_what_a_module_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    for name in ("exit_json", "fail_json"):
        monkeypatch.setattr(AnsibleModule, name, lambda *a, **k: said.append([a[1:], k]))
    monkeypatch.setattr(AnsibleModule, "warn", lambda _self, text: said.append(text))
    module = object.__new__(ToldModule)
    module.exit_json(changed=False, run={ESCAPES: [ESCAPES, 1]})
    module.fail_json(msg=ESCAPES, problems=[ESCAPES])
    module.warn(ESCAPES)
    assert len(said) == 3 and all(map(allowed, strings(texts.clean(said)))), said
    assert all(map(allowed, strings(json.loads(json.dumps(said)))))


def test_what_an_action_answers_and_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    shown: list[str] = []

    class Action(ToldAction):
        def act(self) -> dict[str, Any]:
            self.say(ESCAPES)
            self.warn(ESCAPES)
            return {"msg": ESCAPES}

    action = object.__new__(Action)
    action._display = SimpleNamespace(display=shown.append, warning=shown.append)
    answer = action.run(None, {"inventory_hostname": f"a{ESCAPES}"})
    assert allowed(answer["msg"]) and len(shown) == 2
    assert all(allowed(text) and "\n" not in text for text in shown)


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((TOP / folder).rglob("*.py"))]


def test_nothing_is_printed_but_by_the_contracts_functions() -> None:
    """A new command that prints a container's words by itself is refused."""
    refused = ("print", "sys.stdout.write", "sys.stderr.write")
    found = {
        f"{path.relative_to(TOP)}:{call.lineno}"
        for path in sources("sgl_admin", "slice_bench")
        if not path.is_relative_to(TOP / "sgl_admin" / "contract")
        for call in calls(path)
        if name_of(call) in refused
    }
    assert found == set()


def test_modules_and_actions_answer_by_what_cleans() -> None:
    for path in sources("plugins/modules"):
        assert not [call for call in calls(path) if name_of(call) == "AnsibleModule"], path
    assert issubclass(AdminAction, ToldAction)
    for path in sources("plugins/action"):
        text = path.read_text(encoding="utf-8")
        assert re.search(r"class ActionModule\((Told|Admin)Action\)", text), path
        assert "self._display." not in text and "def run(" not in text, path
