"""`make upstream` against real releases of SGLang on the package index: long, as it downloads
their wheels once.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import upstream
from sgl_admin.sglang import choices, last_words, metrics, moe_configs, releases
from tests import upstream_packages
from tests.upstream_packages import Package

VERSIONS = ("0.5.17", "0.5.23")


@pytest.fixture(scope="module")
def packages() -> dict[str, Package]:
    return {version: upstream_packages.sources(version) for version in VERSIONS}


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str], list[str]]:
    return {}


@pytest.fixture(autouse=True)
def read_once(
    kernels: dict[tuple[str, str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[str, str], list[str]]:
    """The index is asked once for the files of each wheel of kernels."""
    ask = upstream_packages.kernel_files

    def files(distribution: str, version: str, architecture: str) -> list[str]:
        key = (version, architecture)
        if key not in kernels:
            kernels[key] = ask(distribution, version, architecture)
        return kernels[key]

    monkeypatch.setattr(upstream_packages, "kernel_files", files)
    return kernels


@pytest.mark.slow
@pytest.mark.long
def test_every_assumption_holds_in_the_known_releases(
    packages: dict[str, Package], capsys: pytest.CaptureFixture[str]
) -> None:
    code = upstream.main(list(VERSIONS), packages.__getitem__)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "sglang 0.5.17" in printed and "sglang 0.5.23" in printed
    for kind in BROKEN:
        assert f"\n{kind} " in printed


def _release(**changed: Any) -> dict[str, Any]:
    return {"RELEASES": tuple(dataclasses.replace(row, **changed) for row in releases.RELEASES)}


NOTHING = re.compile("SGL_ADMIN_SAYS_THIS")
BROKEN: dict[str, tuple[Any, dict[str, Any]]] = {
    "paths": (releases, _release(kernels="sglang.srt.moved")),
    "names": (releases, _release(fused_moe="sglang.srt.environ")),
    "flags": (metrics, {"FLAG": "--show-metrics"}),
    "variables": (upstream, {"_VARIABLE": re.compile(r"\bSGL_ADMIN\w*")}),
    "metrics": (metrics, {"_COUNTER": "sglang_prompts_total"}),
    "log lines": (last_words, {"_FATAL": NOTHING}),
    "kernels": (upstream, {"_HAVE_FA3": {"x86_64": True, "aarch64": True}}),
    "moe files": (moe_configs, {"_CHANNEL": ",by_channel"}),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_assumption_is_named_and_ends_with_1(
    kind: str,
    packages: dict[str, Package],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, changed = BROKEN[kind]
    for name, value in changed.items():
        monkeypatch.setattr(module, name, value)
    assert upstream.main(["0.5.23"], packages.__getitem__) == 1
    assert f"broken in 0.5.23: {kind}: " in capsys.readouterr().out


def test_the_kernels_assumed_are_those_that_the_server_is_started_by() -> None:
    """The reason that a report shows names the architecture without FlashAttention 3."""
    lacking = [name for name, has in upstream._HAVE_FA3.items() if not has]
    assert lacking == ["aarch64"] and "arm64" in Path(str(choices.__file__)).read_text()
