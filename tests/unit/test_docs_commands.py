"""Each command that README.md, the tutorials and the how-to pages show is run by a test.

What changes nothing is run here: `--syntax-check` of each playbook line with its inventory, limit
and variables, `make --dry-run`, and the front's parser (test_docs.py). `RUN_BY` names the test that
does the real thing, and the test's own words must have what the page shows.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from sgl_admin.commands import main as sgl_admin
from slice_bench import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for part in ("tutorials", "how-to")
        for path in (ROOT / "docs" / part).glob("*.md")
    ),
]
_CONTAINER, _FRONT = "tests/integration/test_container.py", "tests/integration/test_front.py"
_CONCURRENCY, _REPORT = "tests/faults/test_concurrency.py", "tests/integration/test_report.py"
_UNIT = "tests/unit"
# By test, the words of the commands that it runs. A command's words must all be in such lines.
RUN_BY: list[tuple[str, set[str]]] = [
    (
        f"{_CONTAINER}::test_second_prep_changes_nothing",
        {"playbook", "prep", "look", "sgl_flavour"},
    ),
    (f"{_CONTAINER}::test_check_mode_on_a_bare_host", {"playbook", "prep", "--check", "--diff"}),
    (f"{_CONTAINER}::test_stop_playbook_ends_a_live_run", {"playbook", "stop"}),
    (f"{_REPORT}::test_of_one_host_nothing_more_is_said", {"playbook", "--limit"}),
    (
        f"{_CONTAINER}::test_prune_and_uninstall_say_first_what_would_go",
        {
            "playbook",
            "prune",
            "uninstall",
            "--check",
            "sgl_uninstall_caches",
            "sgl_uninstall_models",
        },
    ),
    (
        f"{_UNIT}/test_front.py::test_a_prep_is_cancelled_in_the_inventorys_container",
        {"slice_bench.cli", "prep", "cancel"},
    ),
    (
        f"{_UNIT}/test_front.py::test_a_host_is_measured_in_the_inventorys_container",
        {"slice_bench.cli", "perf"},
    ),
    (
        f"{_UNIT}/test_front.py::"
        "test_a_host_is_described_as_json_and_the_rest_is_on_standard_error",
        {"slice_bench.cli", "system"},
    ),
    (
        f"{_UNIT}/test_perf_command.py::test_the_stage_alone_is_run_once_and_then_stands",
        {"sgl-admin", "perf", "--rebuild"},
    ),
    (
        "tests/integration/test_life.py::test_a_prep_that_is_cancelled_ends_in_order",
        {"playbook", "cancel"},
    ),
    (
        f"{_UNIT}/test_prep_cancel.py::test_a_prep_is_ended_in_order_and_its_last_record_is_shown",
        {"sgl-admin", "prep", "cancel"},
    ),
    (
        f"{_UNIT}/test_profiles_again.py::test_after_a_reboot_the_latest_is_started_without_a_name",
        {"sgl-admin", "ready", "server", "start"},
    ),
    (
        f"{_UNIT}/test_prune.py::test_the_command_keeps_its_own_run_and_says_what_it_freed",
        {"sgl-admin", "prune", "--keep", "--dry-run"},
    ),
    (
        f"{_CONCURRENCY}::test_another_request_while_a_prep_runs",
        {"playbook", "sgl_stop_force", "sgl_stages"},
    ),
    (
        "tests/integration/test_dashboard.py::test_grafana_is_restarted_by_systemd",
        {"playbook", "dashboard"},
    ),
    (
        "tests/integration/test_air_gap.py::"
        "test_a_host_that_reaches_the_controller_only_gets_to_metrics_ready",
        {"playbook", "image", "sgl_image", "sgl_image_save"},
    ),
    (
        "tests/integration/test_image_arm64.py::test_the_image_is_one_for_arm64",
        {"playbook", "sgl_image_platform"},
    ),
    (
        f"{_FRONT}::test_the_whole_way_through_the_scripts_alone",
        {"slice_bench.cli", "provider-prep", "server", "start", "stop", "smoke"},
    ),
    (
        f"{_FRONT}::test_stop_and_start_tell_what_is_live",
        {"slice_bench.cli", "server", "status", "stop", "--force"},
    ),
    (
        f"{_REPORT}::test_the_front_ends_with_the_summary_and_an_exit_code",
        {"slice_bench.cli", "fleet", "--json", "--report"},
    ),
    (
        f"{_UNIT}/test_front.py::test_one_broken_profile_does_not_hide_the_others",
        {"slice_bench.cli", "profiles"},
    ),
    (
        f"{_UNIT}/test_front.py::test_ready_is_asked_in_the_inventorys_container",
        {"slice_bench.cli", "ready"},
    ),
    (
        f"{_CONTAINER}::test_caches_hold_what_the_stage_vouches_for",
        {"sgl-admin", "caches", "inspect"},
    ),
    (
        f"{_UNIT}/test_sgl_admin_cli.py::test_who_watches_a_prep_is_told_how_it_ended",
        {"sgl-admin", "status", "--watch"},
    ),
    (
        f"{_UNIT}/test_readiness.py::test_a_server_of_an_earlier_prep_is_started_by_its_identity",
        {"sgl-admin", "server", "start", "--identity"},
    ),
    (
        f"{_UNIT}/test_share_import.py::"
        "test_what_is_refused_is_whole_all_the_same_and_people_are_told_why",
        {"sgl-admin", "caches", "export", "verify", "import", "--model"},
    ),
    (
        "tests/integration/test_execution_environment.py::"
        "test_the_collection_is_there_and_the_one_that_it_needs",
        {"ansible-builder", "build", "--context", "--tag"},
    ),
    (
        f"{_UNIT}/test_project.py::test_a_project_runs_the_installed_collection",
        {"ansible-galaxy", "collection", "build", "install", "--output-path"},
    ),
]
# Their lines are documented by the programs themselves.
OTHERS = {".", "ansible-navigator", "cp", "curl", "docker", "du", "head", "ls", "minisign", "pip"}
OTHERS |= {"rm", "sed", "sort", "ssh", "tail", "uniq"}
OURS = {"ansible-playbook", "ansible-galaxy", "ansible-builder", "make", "python", "setup.sh"}
PROGRAM_WORDS = {"playbook", "slice_bench.cli", "sgl-admin", "ansible-galaxy", "ansible-builder"}


class Line(NamedTuple):
    page: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2]


def blocks(text: str) -> Iterator[str]:
    """The indented blocks of a page, and those between fences."""
    fence = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    yield from fence.findall(text)
    for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", fence.sub("", text), re.MULTILINE):
        if block.strip():
            yield textwrap.dedent(block).strip("\n") + "\n"


def simple_commands(block: str) -> Iterator[tuple[str, ...]]:
    """The simple commands of a block of shell, without what is assigned before them."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(re.sub(r"^\w+=\$\(", "", line), posix=True, punctuation_chars="|;&>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "|"]:
            if word[0] not in "|;&":
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                words.pop(0)
            if words:
                yield tuple(words)
            words = []


def is_shell(block: str) -> bool:
    """Whether a block is commands: else it is a file's lines or what a program said."""
    first = block.splitlines()[0]
    return not re.match(r"# /|\[|- |\w[\w-]*:( |$)|METRICS_READY", first)


def lines() -> list[Line]:
    return [
        Line(page, words)
        for page in PAGES
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
        if is_shell(block)
        for words in simple_commands(block)
    ]


LINES = lines()


def words_of(line: Line) -> set[str]:
    """What a test must run of a line: program, command, options and variables."""
    options = {word for word in line.words if re.match(r"--\w", word)}
    if line.program == "ansible-playbook":
        [name] = [w for w in line.words if re.search(r"playbooks/|^slice_bench\.sglang\.", w)]
        name = name.removesuffix(".yml").rpartition("/")[2].rpartition(".")[2]
        given = re.findall(r"\b(sgl_\w+)(?==|\":)", " ".join(line.words))
        return {"playbook", name, *options, *given}
    for program, parser in (("slice_bench.cli", cli.parser()), ("sgl-admin", sgl_admin._parser())):
        if program in line.words:
            after = line.words[line.words.index(program) + 1 :]
            return {program, *_command(after, parser), *options}
    if line.program in ("ansible-galaxy", "ansible-builder"):
        commands = {word for word in line.words[1:3] if re.fullmatch(r"[a-z]+", word)}
        return {line.program, *commands, *options}
    return set()


def _command(words: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[str]:
    """The words that choose a command of a parser."""
    for action in parser._actions:
        if isinstance(action.choices, dict) and words and words[0] in action.choices:
            yield words[0]
            yield from _command(words[1:], action.choices[words[0]])


def covering(words: set[str]) -> set[str]:
    """Of these words, those that tests of RUN_BY run with the same program."""
    program = words & PROGRAM_WORDS
    return {word for _test, run in RUN_BY if program <= run for word in run & words}


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_is_run_by_a_test(page: str) -> None:
    shown = [line for line in LINES if line.page == page]
    unknown = [line.words for line in shown if line.program not in OURS | OTHERS]
    assert unknown == [], "not a command, or a program that this test should know"
    missing = {line.words: words_of(line) - covering(words_of(line)) for line in shown}
    missing = {words: lacking for words, lacking in missing.items() if lacking}
    assert missing == {}, "no test of RUN_BY runs these words: name one there"


def test_the_pages_have_the_commands_that_are_looked_for() -> None:
    assert len(LINES) > 60
    assert OURS <= {line.program for line in LINES}
    assert {"slice_bench.cli", "sgl-admin"} <= {word for line in LINES for word in line.words}


@pytest.mark.parametrize(
    "line",
    [
        "ansible-playbook playbooks/look.yml --start-at-task x",
        "ansible-playbook playbooks/validate.yml",
        "ansible-playbook playbooks/prep.yml -e sgl_group_writable=true",
        "python -m slice_bench.cli server start --none",
        "docker exec sglang-dev sgl-admin smoke status",
        "ansible-galaxy role install x",
    ],
)
def test_a_command_that_no_test_runs_is_found(line: str) -> None:
    [words] = simple_commands(f"{line}\n")
    needed = words_of(Line("page", words))
    assert needed - covering(needed)


@cache
def _module(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _definitions(path: Path) -> dict[str, ast.AST]:
    """A module's functions, methods and constants by name, with those of its helpers."""
    beside = [path.parent / name for name in ("conftest.py", "installation.py", "sharing.py")]
    found: dict[str, ast.AST] = {}
    for file in [*(each for each in beside if each.is_file()), path]:
        for node in ast.walk(_module(file)):
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.ClassDef):
                made = [each for each in node.body if getattr(each, "name", "") == "__init__"]
                found[node.name] = ast.Module([*made, *map(ast.Expr, node.bases)], [])
        for node in _module(file).body:
            if isinstance(node, ast.Assign):
                targets = [each for target in node.targets for each in ast.walk(target)]
                found |= {each.id: node.value for each in targets if isinstance(each, ast.Name)}
    return found


def spoken(test: str) -> set[str]:
    """Each word in the texts of a test and of what it calls by name or takes as a fixture."""
    path, _, name = test.partition("::")
    definitions = _definitions(ROOT / path)
    assert name in definitions, f"there is no {test}"
    waiting, seen, words = [name], set(), set()
    while waiting:
        current = waiting.pop()
        if current in seen or current not in definitions:
            continue
        seen.add(current)
        for node in ast.walk(definitions[current]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words |= set(re.findall(r"[\w.-]+", node.value.replace(".yml", " ")))
            elif isinstance(node, ast.Name):
                waiting.append(node.id)
            elif isinstance(node, ast.Attribute):
                waiting.append(node.attr)
            elif isinstance(node, ast.arg):
                waiting.append(node.arg)
            elif isinstance(node, ast.keyword) and node.arg:
                words.add(node.arg)
    return words


@pytest.mark.parametrize("test", sorted({test for test, _words in RUN_BY}))
def test_a_test_runs_what_it_is_named_for(test: str) -> None:
    words = {word for each, run in RUN_BY if each == test for word in run} - PROGRAM_WORDS
    assert words - spoken(test) == set()


def test_a_test_that_runs_something_else_is_found() -> None:
    assert "dashboard" not in spoken(f"{_CONTAINER}::test_stop_playbook_ends_a_live_run")


def _syntax_checked() -> list[tuple[str, ...]]:
    """The playbook lines, those of the same inventory and options as one; with the example's
    inventory where the page names its copy.
    """
    copies = {"inventories/lab": "inventories/gh200", "inventories/builder": "inventories/local"}
    playbooks: dict[tuple[str, ...], set[str]] = {}
    for line in LINES:
        if line.program == "ansible-playbook":
            words = [copies.get(word, word) for word in line.words[1:]]
            names = {word for word in words if re.search(r"playbooks/|^slice_bench\.", word)}
            options = [word for word in words if word not in {*names, "--check", "--diff"}]
            playbooks.setdefault(tuple(options), set()).update(names)
    return [(*sorted(names), *options) for options, names in sorted(playbooks.items())]


@pytest.mark.slow
@pytest.mark.parametrize("words", _syntax_checked(), ids=" ".join)
def test_playbook_lines_pass_ansibles_syntax_check(words: tuple[str, ...]) -> None:
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, *words, "--syntax-check"],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


MAKE = sorted({line.words[1:] for line in LINES if line.program == "make"})


@pytest.mark.parametrize("words", MAKE, ids=" ".join)
def test_a_make_line_expands(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout, done.stderr
