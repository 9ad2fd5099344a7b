"""A server's command line and environment, and what records, logs and `ps` have of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_admin.base import keyed
from sgl_admin.contract import disclosure
from sgl_admin.contract.records import canonical

# Of the records that have `shown`: a digest of what it does not show.
SETTINGS = "settings"


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: dict[str, str]
    shown_argv: list[str]
    shown_env: dict[str, str]

    @classmethod
    def public(cls, argv: Sequence[str], env: Mapping[str, str]) -> Command:
        """One of which everything is shown."""
        return cls(list(argv), dict(env), list(argv), dict(env))

    @property
    def hidden(self) -> list[str]:
        """The values that are not shown."""
        return disclosure.hidden_of(self.argv, self.shown_argv, self.env, self.shown_env)

    @property
    def shown(self) -> dict[str, Any]:
        """argv and env for a record; two that differ in what is not shown have other settings."""
        document: dict[str, Any] = {"argv": self.shown_argv, "env": self.shown_env}
        if self.hidden:
            document[SETTINGS] = keyed.digest(canonical([self.argv, self.env]).decode())
        return document

    def is_that_of(self, record: Mapping[str, Any]) -> bool:
        """Whether a record's server has this command line and environment."""
        own = self.shown
        return all(record.get(name) == own.get(name) for name in ("argv", "env", SETTINGS))
