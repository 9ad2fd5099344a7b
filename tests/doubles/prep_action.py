"""The action sgl_prep without Ansible around it.

It stands for a host on which every command prints a given text: what a container of another
release, or a broken one, would.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ansible_collections.slice_bench.sglang.plugins.action import sgl_prep


class PrepAction(sgl_prep.ActionModule):
    """`answers` are exit code, standard output and standard error of one command after the other;
    the last one repeats.
    """

    def __init__(
        self, answers: list[tuple[int, str, str]], arguments: dict[str, Any], check_mode: bool
    ) -> None:
        self._answers = answers
        # Each command, with what it had on standard input.
        self.asked: list[tuple[str, bytes | None]] = []
        self._task = SimpleNamespace(
            args=arguments, check_mode=check_mode, async_val=0, action="sgl_prep", delegate_to=None
        )
        self._connection = SimpleNamespace(
            _shell=SimpleNamespace(tmpdir="x"), transport="local", has_pipelining=True
        )
        self._display = SimpleNamespace(display=self.shown, warning=self.shown)
        self._cleanup_remote_tmp = False

    @staticmethod
    def shown(message: str) -> None:
        assert isinstance(message, str)

    def validate_argument_spec(self, argument_spec: dict[str, Any] | None = None, **_: Any) -> Any:
        given = {name: option.get("default") for name, option in (argument_spec or {}).items()}
        return None, {**given, **self._task.args}

    def _low_level_execute_command(
        self, cmd: str, *_: Any, in_data: bytes | None = None, **__: Any
    ) -> dict[str, Any]:
        self.asked.append((cmd, in_data))
        code, out, error = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return {"rc": code, "stdout": out, "stderr": error}
