"""What a prep is asked to do. Two requests with the same digest are the same request: the second
attaches to the first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sgl_admin.base import keyed
from sgl_admin.contract import options, stages
from sgl_admin.contract.records import canonical
from sgl_admin.contract.texts import read_json_text


@dataclass(frozen=True)
class Request:
    model: str
    tp: int
    stages: dict[str, str]
    moe_batch_sizes: tuple[int, ...]
    moe_dtype: str
    probe: str
    server_args: tuple[str, ...]
    server_timeout_s: float
    probe_timeout_s: float
    warmup_port: int
    # KEY=VALUE, beside the image's own.
    server_env: tuple[str, ...] = ()
    # Of the server's CUDA graphs, and of the warm-up; without any, the image says what it warms.
    cuda_graph_batch_sizes: tuple[int, ...] = ()
    # How many of the MoE configurations are tried; all without it.
    moe_sample: int | None = None
    # Whether the kernels that were tuned are compiled and verified with a server: ensure or skip.
    moe_fusion: str = "ensure"
    # What the server asks its callers for.
    server_api_key: str = ""
    # The profile that it is of, where it is of one.
    profile: str = ""
    # Options that are only passed through, where they differ from their defaults.
    options: tuple[tuple[str, Any], ...] = ()

    def option(self, name: str) -> Any:
        """The value of an option of the contract that is only passed through."""
        return dict(self.options).get(name, options.BY_NAME[f"{options.PREFIX}{name}"].default)

    @property
    def digest(self) -> str:
        """Made with the tree's key, as a value may be a secret."""
        return keyed.sha256(canonical(self._fields()))

    def to_json(self) -> str:
        return json.dumps(self._fields())

    def _fields(self) -> dict[str, Any]:
        fields = asdict(self)
        for name in ("options", "server_api_key", "profile"):
            if not fields[name]:
                del fields[name]
        return fields

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Raises ValueError where the text is no request."""
        try:
            fields: dict[str, Any] = {
                key: _hashable(value) if isinstance(value, list) else value
                for key, value in read_json_text(text).items()
            }
            return cls(**fields)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a request: {error}") from error

    def describe(self) -> list[str]:
        """The request as the command line that asks for it."""
        flags = [f"{stages.BY_NAME[name].flag}={mode}" for name, mode in self.stages.items()]
        return [
            *([f"--profile={self.profile}"] if self.profile else []),
            f"--model={self.model}",
            f"--tp={self.tp}",
            *flags,
            f"--probe={self.probe}",
            *(
                [f"--cuda-graph-bs={','.join(map(str, self.cuda_graph_batch_sizes))}"]
                if self.cuda_graph_batch_sizes
                else []
            ),
            *(
                [f"--moe-batch-sizes={','.join(map(str, self.moe_batch_sizes))}"]
                if self.moe_batch_sizes
                else []
            ),
            *([f"--moe-sample={self.moe_sample}"] if self.moe_sample else []),
            *(["--moe-fusion=skip"] if self.moe_fusion == "skip" else []),
            *(f"--server-arg={arg}" for arg in self.server_args),
            *(f"--server-env={setting}" for setting in self.server_env),
            *(f"--{name.replace('_', '-')}={_shown(value)}" for name, value in self.options),
        ]


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
