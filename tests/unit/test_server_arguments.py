"""Which arguments of the server an operator may give: none that sgl-admin sets itself, and none
that SGLang's parser refuses.

The parser here has some of the arguments of sglang 0.5.9 (python/sglang/srt/server_args.py), with
the same types, choices, defaults and texts; tests/integration/test_server_arguments.py asks the
real one the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sgl_admin.base import paths
from sgl_admin.base.command import Command
from sgl_admin.commands import main as cli
from sgl_admin.contract import values
from sgl_admin.facts import devices
from sgl_admin.records import prepared
from sgl_admin.sglang import ENGINE, argument_parser, arguments
from tests.doubles.server_arguments import ACCEPTED, KEYS, OWNED, REFUSED, server_args_source

MODEL = ["--model-path", "m", "--tp-size", "1", "--host", "h", "--port", "1", "--enable-metrics"]


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment in which a double of SGLang is imported."""
    package = tmp_path / "site" / "sglang" / "srt"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("print('importing')\n")
    (package / "server_args.py").write_text(server_args_source())
    root = Path(argument_parser.__file__).resolve().parents[2]
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(root)])}


@pytest.mark.parametrize(("words", "why"), OWNED, ids=lambda value: str(value)[:40])
def test_what_sgl_admin_sets_itself_is_refused_in_one_sentence(words: list[str], why: str) -> None:
    said = [found for word in words if (found := ENGINE.owned_argument(word))]
    assert len(said) == 1 and why in said[0] and len(said[0]) < 200 and "\n" not in said[0]


@pytest.mark.parametrize("word", KEYS)
def test_a_key_of_the_server_is_refused_before_a_host_is_asked_and_by_sgl_admin(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [said] = values.problems({"sgl_server_args": [word]})
    with pytest.raises(SystemExit):
        cli.main(["caches", "ensure", f"--server-arg={word}"])
    for problem in (said, capsys.readouterr().err):
        assert word.partition("=")[0] in problem and values.KEYS in problem
        assert "hunter2" not in problem


@pytest.mark.parametrize("words", ACCEPTED, ids=lambda value: str(value)[:40])
def test_what_an_operator_may_give_is_not_one_of_them(words: list[str]) -> None:
    assert [ENGINE.owned_argument(word) for word in words] == [None] * len(words)


def _parser() -> argument_parser._Parser:
    namespace: dict[str, object] = {}
    exec(server_args_source(), namespace)  # noqa: S102 - the double's own source
    parser = argument_parser._Parser()
    namespace["ServerArgs"].add_cli_args(parser)  # type: ignore[attr-defined]
    return parser


@pytest.mark.parametrize(("words", "why"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_parser_refuses_is_said_with_the_argument(words: list[str], why: str) -> None:
    said = argument_parser.problem(_parser(), [*MODEL, *words])
    assert said is not None and why in said, said


@pytest.mark.parametrize("words", ACCEPTED, ids=lambda value: str(value)[:40])
def test_what_the_parser_takes_is_no_problem(words: list[str]) -> None:
    assert argument_parser.problem(_parser(), [*MODEL, *words]) is None


def test_it_is_asked_in_a_process_of_its_own(installed: dict[str, str]) -> None:
    said = arguments.problem(("--mem-fraction-static", "lots"), installed)
    assert said is not None and said.startswith("sglang") and "invalid float value: 'lots'" in said
    assert arguments.problem(("--mem-fraction-static", "0.5"), installed) is None


def test_a_long_list_of_choices_is_cut(installed: dict[str, str]) -> None:
    said = arguments.problem(("--attention-backend", "x" * 2000), installed)
    assert said is not None and len(said) < 320 and said.endswith("...")


def test_a_parser_that_cannot_be_asked_leaves_it_to_the_server(tmp_path: Path) -> None:
    assert arguments.problem(("--x",), {"PYTHONPATH": str(tmp_path)}) is None


@pytest.fixture
def prep(
    live_run: str,
    model_folder: Path,
    installed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """The words of a prep in a container with the double of SGLang."""
    cpu = devices.Devices(name="cpu", count=1, cuda=False)
    monkeypatch.setattr(devices, "find", lambda visible: cpu)
    for name, value in installed.items():
        monkeypatch.setenv(name, value)
    return ["caches", "ensure", "--model", str(model_folder)]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--detach"], ["--detach", "--standing"]])
def test_a_prep_with_an_unknown_argument_ends_with_2_before_anything(
    prep: list[str], live_run: str, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert cli.main([*prep, "--server-arg=--nonsense-flag", *more]) == 2
    said = capsys.readouterr()
    assert "does not know --nonsense-flag" in said.err and said.out == ""
    assert not paths.job(live_run).exists() and not paths.prep_result(live_run).exists()


def test_arguments_of_a_prep_that_left_a_result_are_not_asked_for_once_more(
    prep: list[str],
    live_run: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    problem = arguments.problem

    def count(words: tuple[str, ...], environment: dict[str, str]) -> str | None:
        asked.append(words)
        return problem(words, environment)

    monkeypatch.setattr(ENGINE, "argument_problem", count)
    request = [*prep, "--server-arg=--context-length=64", "--dry-run", "--json"]
    assert cli.main(request) == 0 and len(asked) == 1
    server = asked[0]
    argv = ENGINE.command(prep[-1], 1, 31999, list(server))
    record = {"identity": "sha256:" + "a" * 64, "argv": argv, "env": {}}
    prepared.folder(live_run).mkdir(parents=True)
    prepared.write(
        live_run,
        {"server": record, "model": prep[-1], "prep_id": "p", "profile": None},
        {"ok": False},
        Command.public(argv, {}),
    )
    assert cli.main(request) == 0 and len(asked) == 1
    assert cli.main([*request, "--server-arg=--page-size=16"]) == 0 and len(asked) == 2
    assert cli.main([*prep, "--dry-run"]) == 0 and len(asked) == 2, "none is given"
    capsys.readouterr()


def test_check_tells_all_that_keeps_a_container_from_starting(
    prep: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sgl_admin.init.trial.problems", lambda: iter(["prometheus: x"]))
    stream = type("Stream", (), {"buffer": type("B", (), {"read": lambda self: b'["--nope"]'})()})
    monkeypatch.setattr("sys.stdin", stream())
    assert cli.main(["check", "--server-args"]) == 2
    first, second = json.loads(capsys.readouterr().out)["problems"]
    assert "does not know --nope" in first and second == "prometheus: x"
