"""The action that has sgl_host_info packed and run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.plugins.action import ActionBase
from ansible_collections.slice_bench.sglang.plugins.action.sgl_host_info import ActionModule


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_the_module_is_packed_without_the_garbage_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = {"inventory_hostname": "a"}

    def execute(_action: ActionModule, task_vars: dict[str, Any]) -> dict[str, Any]:
        assert task_vars == variables
        return {"collected": gc.isenabled(), "warnings": ["a\x1b[2J"]}

    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(ActionModule, "_execute_module", execute)
    assert gc.isenabled()
    answer = object.__new__(ActionModule).run(None, variables)
    assert answer["collected"] is False
    assert answer["warnings"] == ["a?[2J"], "the host's words are cleaned on the controller too"
