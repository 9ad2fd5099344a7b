"""The parser of the real SGLang in the image takes and refuses what tests/doubles/server_arguments
says of it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.doubles.server_arguments import ACCEPTED, KEYS, OWNED, REFUSED
from tests.integration.installation import IMAGE

pytestmark = pytest.mark.slow

_ASK = """
import importlib, json, sys
from sgl_admin.sglang import ENGINE, argument_parser
server_args = importlib.import_module("sglang.srt.server_args")
def parser():
    made = argument_parser._Parser()
    server_args.ServerArgs.add_cli_args(made)
    return made
base = ENGINE.command("m", 1, 1, [])[3:]
said = [argument_parser.problem(parser(), [*base, *words]) for words in json.load(sys.stdin)]
set_by_us = parser().parse_args(base)
names = {
    name: action.dest for action in parser()._actions for name in action.option_strings
}
print(json.dumps({"said": said, "names": names}))
"""


@pytest.fixture(scope="module")
def real(image: None) -> dict[str, Any]:
    cases = [words for words, _why in REFUSED] + ACCEPTED
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--interactive", "--network=none", "--user=12345:12345",
            "--env=TORCHINDUCTOR_CACHE_DIR=/tmp/cache", "--env=TRITON_CACHE_DIR=/tmp/cache",
            "--env=PYTHONPATH=/opt/sgl-admin", "--entrypoint=/opt/sglang/bin/python", IMAGE,
            "-P", "-c", _ASK,
        ],
        input=json.dumps(cases), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return answer


def test_the_real_parser_refuses_and_takes_what_the_double_does(real: dict[str, Any]) -> None:
    refused, accepted = real["said"][: len(REFUSED)], real["said"][len(REFUSED) :]
    wrong = [
        (words, said)
        for (words, why), said in zip(REFUSED, refused, strict=True)
        if said is None or why not in said
    ]
    assert wrong == [] and accepted == [None] * len(ACCEPTED)


def test_each_name_of_what_sgl_admin_sets_is_refused(real: dict[str, Any]) -> None:
    """By SGLang's own aliases."""
    owned = {
        "model_path", "tp_size", "tensor_parallel_size", "host", "port", "enable_metrics",
        "api_key", "admin_api_key", "config", "help",
    }  # fmt: skip
    named = {name for name, destination in real["names"].items() if destination in owned}
    assert len(named) >= 12
    refused = [words[0] for words, _why in OWNED] + KEYS
    assert named == {word.partition("=")[0] for word in refused} & set(real["names"])


def test_the_image_tells_in_a_throwaway_container() -> None:
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--interactive", "--network=none", "--user=12345:12345",
            "--env=SGL_SCRAPE_INTERVAL=often", "--env=SGL_PROMETHEUS_PORT=9100",
            "--env=SGL_TSDB_RETENTION_SIZE=1GB", "--entrypoint=sgl-admin", IMAGE, "check",
            "--server-args",
        ],
        input='["--nonsense-flag"]', capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    unknown, shared, prometheus = json.loads(done.stdout)["problems"]
    assert unknown == "sglang 0.5.9 does not know --nonsense-flag"
    assert shared.startswith("port 9100 is given to prometheus and node_exporter")
    assert "not a valid duration" in prometheus and "often" in prometheus
